"""Measure the memory of a training process on many samples against the same training on few.

Drawn samples are ingested, then the step `sft` trains a tiny model in a process of its own. The value is the largest
resident set of that process, with the images of all samples beside it for comparison: earlier, they were in memory.

    python benchmarks/training_memory.py [--samples FEW MANY]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from result import write_result

STEPS = 60
TRAIN = """
import json, resource, sys
from pathlib import Path
from hardcase.config import load_profile
from hardcase.data.snapshot import Snapshot
from hardcase.steps.sft import run

folder, store = Path(sys.argv[1]), sys.argv[2]
profile = load_profile("tiny", {"sft.steps": %d, "sft.warm_up.steps": 1, "sft.reading.steps": 1, "sft.warmup_steps": 5})
(folder / "scratch").mkdir()
run(folder / "snapshot", store, profile.model, profile.sft, 0, folder / "scratch", folder / "model", folder / "log")
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def measure_training(samples: int, folder: Path) -> tuple[int, int]:
    """Return the bytes of a training's largest resident set, and those of the shards that it reads."""
    from hardcase.config import IngestConfig
    from hardcase.steps.ingest import run

    folder.mkdir()
    source, store = f"procedural://?samples={samples}&seed=0", (folder / "store").as_uri()
    run(source, store, IngestConfig(eval_share=0), folder / "snapshot", folder / "quarantine", folder / "drawn")
    command = [sys.executable, "-c", TRAIN % STEPS, str(folder), store]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shards = json.loads((folder / "snapshot").read_bytes())["shards"]
    return int(done.stdout.splitlines()[-1]), sum(shard["bytes"] for shard in shards)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=[2_000, 32_000], metavar=("FEW", "MANY"))
    few, many = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        (baseline, few_bytes), (value, many_bytes) = (
            measure_training(count, Path(folder) / str(count)) for count in (few, many)
        )
    result = write_result(
        "training_memory",
        value=value / 2**20,
        baseline=baseline / 2**20,
        unit=f"MiB of the largest resident set on {many} samples; the baseline is that on {few}",
        command=f"training_memory.py --samples {few} {many}",
        shards_mib={"few": few_bytes / 2**20, "many": many_bytes / 2**20},
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
