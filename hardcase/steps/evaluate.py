"""evaluate: scores of the answers to the untouched split, with intervals, of the final model and the SFT model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardcase.config import EvaluateConfig
from hardcase.data.completions import Completion, read_completions
from hardcase.data.evaluations import write_evaluation
from hardcase.data.scores import write_scores
from hardcase.data.snapshot import Snapshot
from hardcase.runtime.metrics import show_scores
from hardcase.runtime.running import running
from hardcase.stats.calibration import calibrate, list_refusals
from hardcase.stats.learning import list_warnings
from hardcase.store.digest import canonical_json
from hardcase.store.store import write_atomically
from hardcase.task.answer import parse_answer
from hardcase.task.reward import DEFAULT_KIND, dpa
from hardcase.task.score import best_constant, chance, paired_difference, score

logger = logging.getLogger(__name__)


def execute(plan: Mapping[str, Any], answers: str, metrics: Any, confusion: Any) -> str:
    """Score the answers of an attestation, show the scores in KFP's artifacts, return the sha256 of the step's own."""
    with running("evaluate", plan, {"snapshot": answers, "answers": answers}) as work:
        config, folder = EvaluateConfig.model_validate(work.config), work.input("answers")
        final, sft = folder / "final.parquet", folder / "sft.parquet"
        run(work.input("snapshot"), plan["store"], final, sft, config, work.seed, work.outputs)
        show_scores(metrics, confusion, work.outputs / "scores", work.outputs / "evaluation")
    return work.attestation


def run(
    snapshot: Path, store: str, answers: Path, sft_answers: Path, config: EvaluateConfig, seed: int, folder: Path
) -> None:
    """Write the tables of the final model (`evaluation`) and the SFT model (`baseline`), and the `scores` of both.

    Where the final model answered in several orders, its confidence is written too (`calibration`). `sft_answers` may
    be missing: then one model alone is scored. `config` and `seed` are of the bootstrap.
    """
    labels = Snapshot.open(snapshot, store).read_labels("eval")
    truths = [frozenset(row["answer"]) for row in labels]
    aspects, groups = [row["aspect"] for row in labels], [row["group"] for row in labels]
    completions = read_completions([answers], [row["id"] for row in labels])
    final = _judge(completions, labels)
    write_evaluation(final, folder / "evaluation")
    if config.orders > 1:
        _calibrate(completions, labels, config, seed, folder / "calibration")
    report: dict[str, Any] = {
        "samples": len(labels),
        "groups": len(set(groups)),
        "reward": DEFAULT_KIND,
        "chance": chance(truths, aspects, groups, DEFAULT_KIND, config.resamples, seed),
        "constant": best_constant(truths, aspects, DEFAULT_KIND),
        "final": score(aspects, *_values(final), groups, config.resamples, seed) | _count(final),
        "sft": None,
        "gain": None,
    }
    if sft_answers.exists():
        first = _judge(read_completions([sft_answers], [row["id"] for row in labels]), labels)
        write_evaluation(first, folder / "baseline")
        report["sft"] = score(aspects, *_values(first), groups, config.resamples, seed) | _count(first)
        report["gain"] = paired_difference(_values(first), _values(final), aspects, groups, config.resamples, seed)
    write_scores(report, folder / "scores")
    for warning in list_warnings(scores=report):
        logger.warning(warning)


def _calibrate(
    completions: Sequence[Sequence[Completion]],
    labels: Sequence[Mapping[str, Any]],
    config: EvaluateConfig,
    seed: int,
    path: Path,
) -> None:
    answers = [[parse_answer(text) for text, _ in row] for row in completions]
    bounds = {name: getattr(config, name) for name in ("precision", "assurance", "resamples")}
    calibration = calibrate(labels, answers, **bounds, seed=seed)
    for refusal in list_refusals(calibration):
        logger.warning("confidence: %s", refusal)
    write_atomically(path, canonical_json(calibration))


def _judge(completions: Sequence[Sequence[Completion]], labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for label, ((text, cut), *_) in zip(labels, completions, strict=True):
        answer, truth = parse_answer(text), frozenset(label["answer"])
        rows.append(
            {
                **{name: label[name] for name in ("id", "aspect", "group")},
                "truth": sorted(truth),
                "answer": None if answer is None else sorted(answer),
                "text": text,
                "dpa": dpa(answer, truth, DEFAULT_KIND),
                "exact": answer == truth,
                "cut": cut,
            }
        )
    return rows


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of answers that are valid, and of those that were cut at `max_new_tokens`."""
    valid, cut = ([row["answer"] is not None for row in rows], [row["cut"] for row in rows])
    return {"valid": float(np.mean(valid)), "cut": float(np.mean(cut))}


def _values(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    return np.array([row["dpa"] for row in rows]), np.array([row["exact"] for row in rows])
