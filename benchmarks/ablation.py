"""Measure what each part of HCM-GRPO is worth: seven arms at equal optimiser steps and rollouts, on unseen samples.

For each SFT seed, the steps of the pipeline make a pool of training samples with a long tail of hard cases, an SFT
model, and the mined cases of the pool. Each arm trains from there with each GRPO seed. `more_sft` has the processor
time of a GRPO run. Every finished training is stored in the work folder, so that a run which was stopped continues.

The arms are judged on 1,200 samples drawn as the pools are, and on 600 more of the tail. All tuning was done on another
SFT seed and another set (`--dev`). Intervals are 95%: bootstrap over samples and, within each SFT seed, over GRPO
seeds, paired by sample.
Writes benchmarks/results/ablation.json and docs/pictures/ablation.png.

    python benchmarks/ablation.py [--dev] [--steps N] [--seeds N] [--processes N] [--work FOLDER]
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from result import RESULTS, write_result

from hardcase.config import load_profile
from hardcase.data.cases import read_cases
from hardcase.data.scenes import TAIL_SHARE, draw_scene, encode_image
from hardcase.data.snapshot import Snapshot
from hardcase.model.engine import LocalEngine, generate_answers
from hardcase.model.grpo import train_grpo
from hardcase.model.internvl import load_initial_model, load_model, set_up_torch
from hardcase.model.sft import collect_vocabulary_texts, fine_tune
from hardcase.steps.ingest import run as ingest_step
from hardcase.steps.mine import run as mine_step
from hardcase.steps.rollout import run as rollout_step
from hardcase.steps.sft import run as sft_step
from hardcase.task.answer import parse_answer
from hardcase.task.reward import KINDS, dpa
from hardcase.task.sample import ASPECTS, Sample

POOL, MORE_TAIL = 1200, 600
EXACT, DPA, MINED = {"reward": "exact"}, {"reward": "penalised", "partial_credit": 0.25}, {"hard_share": 0.3}
# Changes of the profile's GRPO; None: no GRPO.
ARMS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "sft": None,
    "more_sft": None,
    "grpo": {**EXACT, "hard_share": 0.0},
    "grpo_dpa": {**DPA, "hard_share": 0.0},
    "grpo_mining": {**EXACT, **MINED},
    "hcm_grpo": {**DPA, **MINED},
}
UNTRAINED = ("base", "sft")
# Seeds change an arm of SFT little: it is trained with fewer.
FEWER = {"base": 1, "sft": 1, "more_sft": 2}
# Both took .54 s and .074 s a step on the same busy core; a little more for SFT.
SFT_STEPS_A_GRPO_STEP = 7.5
MORE_SFT = {"warm_up": None, "reading": None, "learning_rate": 1e-3, "threads": 1}


@cache
def draw_fresh(dev: bool) -> list[Sample]:
    """Draw samples outside every pool: as the pools are drawn, then more of the tail."""
    rng, drawn = random.Random(f"ablation {'dev' if dev else 'untouched'}"), []
    for index in range(POOL + MORE_TAIL):
        tail = index >= POOL or rng.random() < TAIL_SHARE
        scene = draw_scene(rng, tail=tail)
        images = tuple(encode_image(image, ".jpg" if place else ".png") for place, image in enumerate(scene.images))
        name = f"{'tail' if tail else 'bulk'}-{index}"
        drawn.append(Sample(name, scene.aspect, frozenset(scene.truth), None, name, images))
    return drawn


def prepare(job: tuple[Path, int]) -> None:
    """Make the snapshot of a seed, its SFT model and the mined cases of its pool in a folder."""
    folder, seed = job
    profile = load_profile("tiny", {"seed": seed})
    store, scratch = (folder / "store").absolute().as_uri(), folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    snapshot, quarantine, model = folder / "snapshot", folder / "quarantine", folder / "sft"
    if not snapshot.exists():
        source = f"procedural://?samples=5000&seed={seed}"
        ingest_step(source, store, profile.ingest, snapshot, quarantine, scratch)
    if not (folder / "sft.log").exists():
        sft_step(snapshot, store, profile.model, profile.sft, seed, scratch, model, folder / "sft.part")
        (folder / "sft.part").rename(folder / "sft.log")
    if not (folder / "mined").exists():
        rollouts = folder / "rollouts"
        rollout_step(snapshot, store, model, profile.mine, seed, "1/1", scratch, rollouts)
        mine_step(snapshot, store, rollouts, profile.mine, folder / "mined.part")
        (folder / "mined.part").rename(folder / "mined")
    print(f"{folder.name}: prepared", file=sys.stderr, flush=True)


def train(job: tuple[Path, Path, str, int, int, bool]) -> None:
    """Train one arm with one seed from a prepared SFT model, and write its rewards on the fresh set to a file."""
    out, start, arm, seed, steps, dev = job
    profile = load_profile("tiny", {"seed": int(start.name.removeprefix("sft-"))})
    set_up_torch(seed, 1)
    pool = Snapshot.open(start / "snapshot", (start / "store").absolute().as_uri()).open_samples(
        "train", reasoning=True
    )
    model, processor = load_model(start / "sft")
    if arm == "base":
        model, processor = load_initial_model(profile.model, collect_vocabulary_texts(pool, warm_up=True), profile.seed)
    log: list[dict[str, Any]] = []
    began, changes = time.process_time(), ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        if changes is not None:
            config = profile.grpo.model_copy(update={"threads": 1, "steps": steps, **changes})
            log = train_grpo(model, processor, pool, read_cases(start / "mined"), config, seed, Path(folder))
        elif arm not in UNTRAINED:
            more = profile.sft.model_copy(update={**MORE_SFT, "steps": round(steps * SFT_STEPS_A_GRPO_STEP)})
            log = fine_tune(model, processor, pool, more, seed, Path(folder))
    seconds, samples = time.process_time() - began, draw_fresh(dev)
    answers = generate_answers(
        LocalEngine(model, processor),
        samples,
        copies=1,
        batch_size=64,
        max_new_tokens=40,
        temperature=0,
        seed=0,
        what="judging",
    )
    earned = {
        kind: [dpa(parse_answer(one.text), sample.truth, kind) for sample, (one,) in zip(samples, answers, strict=True)]
        for kind in KINDS
    }
    result = {"arm": arm, "sft_seed": profile.seed, "seed": seed, "seconds": seconds, "earned": earned, "log": log}
    out.with_suffix(".part").write_text(json.dumps(result), encoding="utf-8")
    out.with_suffix(".part").rename(out)
    exact = np.mean(earned["exact"][:POOL])
    print(f"{out.stem}: exact match {exact:.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)


Values = npt.NDArray[np.float64]


def list_measures(dev: bool) -> dict[str, tuple[str, Values]]:
    """Return by name the kind of reward, and the weight of each sample in the mean, times 100 for scores."""
    samples = draw_fresh(dev)
    pool = np.arange(len(samples)) < POOL
    aspects = np.array([sample.aspect for sample in samples])
    tail = np.array([sample.id.startswith("tail") for sample in samples])
    by_aspect = {name: ("penalised", 100 * _mean(pool & (aspects == name))) for name in ASPECTS}
    overall = np.mean([weights for _, weights in by_aspect.values()], axis=0)
    return {
        "overall": ("penalised", overall),
        "exact_match": ("exact", _mean(pool)),
        "tail_overall": ("penalised", 100 * _mean(tail)),
        "tail_exact_match": ("exact", _mean(tail)),
        **by_aspect,
    }


def _mean(chosen: npt.NDArray[np.bool_]) -> Values:
    weights: Values = chosen / chosen.sum()
    return weights


def estimate_interval(differences: Values, weights: Values, rng: np.random.Generator) -> dict[str, float]:
    """Return the mean of `differences` (SFT seeds, GRPO seeds, samples) and its 95% interval."""
    first, seeds, samples = differences.shape
    drawn = []
    for _ in range(2000):
        counts = rng.multinomial(seeds, [1 / seeds] * seeds, size=first) / seeds
        by_sample = np.einsum("ijk,ij->k", differences, counts) / first
        again = rng.multinomial(samples, [1 / samples] * samples) * weights
        # A measure is a mean, or a mean of means: drawn samples share its weight.
        drawn.append(float(by_sample @ again) * weights.sum() / again.sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(differences.mean((0, 1)) @ weights), "low": float(low), "high": float(high)}


def tabulate(results: Sequence[dict[str, Any]], dev: bool) -> list[dict[str, Any]]:
    """Return one row an arm: its measures, and its gain over SFT, over more SFT and over plain GRPO."""
    rng, rows = np.random.default_rng(0), []
    by_arm = {name: runs for name in ARMS if (runs := [run for run in results if run["arm"] == name])}

    def earned(name: str, kind: str) -> Values:
        seeds = sorted({run["sft_seed"] for run in by_arm[name]})
        return np.array([[run["earned"][kind] for run in by_arm[name] if run["sft_seed"] == seed] for seed in seeds])

    for name, runs in by_arm.items():
        row: dict[str, Any] = {"arm": name, "runs": len(runs)}
        row["seconds"] = float(np.mean([run["seconds"] for run in runs]))
        row["exact_match_by_run"] = {
            f"{run['sft_seed']}-{run['seed']}": round(float(np.mean(run["earned"]["exact"][:POOL])), 4) for run in runs
        }
        for key in ("frac_reward_zero_std", "hard_share", "entropy"):
            means = [np.mean([entry[key] for entry in run["log"]]) for run in runs if key in (run["log"] or [{}])[0]]
            row[key] = float(np.mean(means)) if means and name != "more_sft" else None
        for measure, (kind, weights) in list_measures(dev).items():
            row[measure] = estimate_interval(earned(name, kind), weights, rng)
            for other in ("sft", "more_sft", "grpo"):
                if name not in (*UNTRAINED, other) and other in by_arm:
                    own, theirs = earned(name, kind), earned(other, kind)
                    gain = own - (theirs if own.shape == theirs.shape else theirs.mean(1, keepdims=True))
                    row.setdefault(f"over_{other}", {})[measure] = estimate_interval(gain, weights, rng)
        rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot each arm's gain over SFT with its interval, and the processor time that it took after SFT."""
    mpl.use("Agg")
    shown = [row for row in rows if "over_sft" in row]
    figure, panes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = {"overall": "overall", "exact_match": "exact match", "tail_overall": "overall, hard tail"}
    for pane, (measure, title) in zip(panes, titles.items(), strict=True):
        gains = [row["over_sft"][measure] for row in shown]
        middle = [gain["value"] for gain in gains]
        spread = [[gain["value"] - gain["low"] for gain in gains], [gain["high"] - gain["value"] for gain in gains]]
        pane.errorbar(range(len(shown)), middle, spread, fmt="o", capsize=4)
        pane.axhline(0, color="grey", linewidth=0.8)
        pane.set_xticks(range(len(shown)), [f"{row['arm']}\n{row['seconds']:.0f} s" for row in shown], fontsize=7)
        pane.set_title(f"{title}: gain over SFT, 95%")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Train what is missing, then write table and plot of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="SFT seed 3 and the development set, for tuning")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of GRPO")
    parser.add_argument("--seeds", type=int, default=5, help="GRPO seeds")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path(".hardcase/ablation"))
    options = parser.parse_args()
    sft_seeds = [3] if options.dev else [0, 1, 2]
    folder = options.work / f"{'dev' if options.dev else 'untouched'}-{options.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = {seed: options.work / f"sft-{seed}" for seed in sft_seeds}
    jobs = [
        (folder / f"{arm}-{first}-{seed}.json", starts[first], arm, seed, options.steps, options.dev)
        for seed, arm, first in product(range(options.seeds), ARMS, sft_seeds)
        if seed < FEWER.get(arm, options.seeds)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        list(pool.map(prepare, [(start, seed) for seed, start in starts.items()]))
        list(pool.map(train, [job for job in jobs if not job[0].exists()]))
    rows = tabulate([json.loads(out.read_text(encoding="utf-8")) for out, *_ in jobs], options.dev)
    for row in rows:
        over = row.get("over_grpo", {}).get("overall")
        gain = f"{over['value']:+.2f} [{over['low']:.2f}, {over['high']:.2f}]" if over else ""
        print(
            f"{row['arm']:12} overall {row['overall']['value']:.2f} exact {row['exact_match']['value']:.4f} "
            f"tail {row['tail_overall']['value']:.2f} {row['seconds']:4.0f} s {gain}"
        )
    if options.dev:
        return
    plain, best = (next(row for row in rows if row["arm"] == name) for name in ("grpo", "hcm_grpo"))
    write_result(
        "ablation",
        value=best["overall"]["value"],
        baseline=plain["overall"]["value"],
        unit=f"overall of HCM-GRPO on {POOL} fresh samples, {best['runs']} trainings of {options.steps} steps; "
        "baseline: GRPO with exact reward and uniform sampling",
        command=f"ablation.py --steps {options.steps} --seeds {options.seeds}",
        arms=rows,
    )
    plot(rows, RESULTS.parents[1] / "docs" / "pictures" / "ablation.png")


if __name__ == "__main__":
    main()
