"""How large the Argo Workflow of the retraining pipeline is: before it was flattened, and as it is committed.

The YAML is compiled, its drivers are done and the workflow is run as Kubeflow Pipelines 2.17.0 and Argo Workflows
v4.0.5 do it (`tests/support/`, held to recorded runs by `tests/pipelines/test_workflow.py`); nothing is installed or
started. Kubernetes stores at most 1,048,576 bytes: above it Argo compresses the nodes, and where that is too large as
well the run ends (`fits`). Before: profile smoke, as recorded; after: profile internvl3-2b.

    python benchmarks/workflow_size.py
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.samples import BEFORE, PIPELINES, values_before, values_now  # noqa: E402
from tests.support.workflow import LIMIT, describe, seal_digests, seal_links, workflow_size  # noqa: E402

SHARDS = (1, 8, 32)


def measure(*, now: bool) -> dict[str, Any]:
    """Return counts and sizes of the pipeline, as it is now or as it was."""
    path = PIPELINES / "retraining.yaml" if now else BEFORE
    values, seal = (values_now, seal_digests) if now else (values_before, seal_links)
    figures: dict[str, Any] = asdict(describe(path, values()))
    for shards in SHARDS:
        size = workflow_size(path, values(shards=shards), seal)
        figures |= {
            f"bytes, shards: {shards}": size.plain,
            f"compressed, shards: {shards}": size.spec + size.compressed,
        }
        figures[f"fits, shards: {shards}"] = size.stored <= LIMIT
    return figures


def main() -> None:
    """Print the table, write the result."""
    before, after = measure(now=False), measure(now=True)
    table = Table("", "before", "after")
    for name, value in before.items():
        table.add_row(name.replace("_", " "), *(f"{v:,}" if type(v) is int else str(v) for v in (value, after[name])))
    Console().print(table)
    size = f"compressed, shards: {SHARDS[-1]}"
    result = {
        "name": "workflow_size",
        "value": after[size],
        "unit": "bytes of the Workflow at 32 shards, nodes compressed; baseline: as it was with loops and links in it",
        "baseline": before[size],
        "ratio": after[size] / before[size],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/workflow_size.py",
        "before": before,
        "after": after,
    }
    target = ROOT / "benchmarks" / "results" / "workflow_size.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
