"""GRPO from the same SFT models with each definition of the reward, at equal steps; judged on samples nobody has seen.

The rows of `docs/decisions/0001-dpa.md`. SFT models, mined rates and training pools are those of finished runs, so run
the profile with several seeds first; the fresh samples share no seed with any pool or evaluation split. Every arm has
the profile's steps, prompts, generations and learning rate. Intervals are over fresh samples, paired with the SFT
model's answers and averaged over runs. Writes benchmarks/results/reward_ablation.json.

    python benchmarks/reward_ablation.py .hardcase/runs/A .hardcase/runs/B .hardcase/runs/C [--samples 1200]
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hardcase.config import GrpoConfig, load_profile
from hardcase.data.digest import path_digest
from hardcase.data.scenes import TAIL_SHARE, draw_scene, encode
from hardcase.data.snapshot import Snapshot
from hardcase.model.grpo import improve
from hardcase.model.internvl import load_model, set_up_torch
from hardcase.model.rollout import answers
from hardcase.task.answer import parse_answer
from hardcase.task.reward import KINDS, dpa
from hardcase.task.sample import Sample
from hardcase.task.score import paired_difference, score

RESULT = Path(__file__).parent / "results" / "reward_ablation.json"


@cache
def fresh(count: int) -> list[Sample]:
    """Samples outside every pool."""
    rng = random.Random("reward ablation 424242")
    drawn = []
    for index in range(count):
        tail = rng.random() < TAIL_SHARE
        scene = draw_scene(rng, tail=tail)
        images = tuple(encode(image, ".jpg" if place else ".png") for place, image in enumerate(scene.images))
        name = f"{'tail' if tail else 'bulk'}-{index}"
        drawn.append(Sample(name, scene.aspect, frozenset(scene.truth), None, name, images))
    return drawn


def judged(model: Any, processor: Any, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Exactness and each kind's partial credit of greedy answers."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for sample, (text,) in answers(
        model, processor, samples, generations=1, batch_size=64, max_new_tokens=40, temperature=0, seed=0, what="fresh"
    ):
        for kind in KINDS:
            found[kind].append(dpa(parse_answer(text), sample.truth, kind))
    return found


def artifact(run: Path, name: str) -> Path:
    """A step's output in a run's folder."""
    (path,) = run.glob(f"artifacts/*/{name}")
    return path


def pool_of(run: Path) -> list[Sample]:
    """The training samples of a run; its snapshot may have come from the cache of an earlier one."""
    wanted = json.loads((run / "summary.json").read_text(encoding="utf-8"))["snapshot"]
    manifests = run.parent.glob("*/artifacts/*/ingest/snapshot")
    manifest = next(path for path in manifests if path_digest(path) == wanted)
    return Snapshot.open(manifest, (run.parent.parent / "store").absolute().as_uri()).load("train")


def arm(count: int, job: tuple[Path, str]) -> dict[str, Any]:
    """One training: from the SFT model of a run, with one reward; `sft` trains nothing."""
    run, kind = job
    profile = load_profile(str(run / "config.yaml"))
    config: GrpoConfig = profile.grpo.model_copy(update={"threads": 1})
    set_up_torch(profile.seed, config.threads)
    model, processor = load_model(artifact(run, "sft/trained"))
    log: list[dict[str, Any]] = []
    if kind != "sft":
        pool = pool_of(run)
        mined = pq.read_table(artifact(run, "mine/mined"))
        rates, hard = np.array(mined["exact_rate"].to_pylist()), mined["hard"].to_pylist()
        config = config.model_copy(update={"reward": kind})
        with tempfile.TemporaryDirectory() as folder:
            log = improve(model, processor, pool, rates, hard, config, profile.seed, Path(folder))
    answered = judged(model, processor, fresh(count))
    exact = float(np.mean(answered["exact"]))
    print(f"{run.name} {kind:10} exact match {exact:.3f}", file=sys.stderr, flush=True)
    return {
        "run": run.name,
        "kind": kind,
        "seed": profile.seed,
        "answers": answered,
        "zero_spread": [entry["frac_reward_zero_std"] for entry in log],
    }


def table(arms: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a reward: means over runs, and the gain over SFT with its interval."""
    aspects, names = [sample.aspect for sample in samples], [sample.id for sample in samples]
    tail = np.array([name.startswith("tail") for name in names])
    by_kind = {each["kind"]: [other for other in arms if other["kind"] == each["kind"]] for each in arms}
    means = {
        kind: {key: np.mean([each["answers"][key] for each in mine], axis=0) for key in KINDS}
        for kind, mine in by_kind.items()
    }
    before, rows = means["sft"], []
    for kind, values in means.items():
        mine = by_kind[kind]
        whole = score(aspects, values["penalised"], values["exact"], names)
        gain = paired_difference(
            (before["penalised"], before["exact"]), (values["penalised"], values["exact"]), aspects, names
        )
        rows.append(
            {
                "reward": kind,
                "exact_match": whole["exact_match"],
                "exact_match_by_run": {str(each["seed"]): float(np.mean(each["answers"]["exact"])) for each in mine},
                "exact_match_gain": gain["exact_match"],
                "overall": whole["overall"],
                "overall_gain": gain["overall"],
                "by_aspect": whole["by_aspect"],
                "jaccard": 100 * float(np.mean(values["jaccard"])),
                "tail_exact_match": float(values["exact"][tail].mean()),
                "groups_without_spread": float(np.mean([share for each in mine for share in each["zero_spread"]]))
                if kind != "sft"
                else None,
            }
        )
    return rows


def main() -> None:
    """Run every arm, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=1200)
    options = parser.parse_args()
    jobs = list(product(options.runs, ["sft", *KINDS]))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        arms = list(pool.map(partial(arm, options.samples), jobs))
    base, *done = table(arms, fresh(options.samples))
    best = max(done, key=lambda row: row["exact_match"])
    RESULT.parent.mkdir(exist_ok=True)
    result = {
        "name": "reward_ablation",
        "value": best["exact_match"],
        "unit": f"exact match on {options.samples} fresh samples, mean of {len(options.runs)} runs, reward "
        f"{best['reward']}; baseline: the SFT models it started from",
        "baseline": base["exact_match"],
        "ratio": best["exact_match"] / base["exact_match"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": "python benchmarks/reward_ablation.py RUN RUN RUN",
        "arms": [base, *done],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
