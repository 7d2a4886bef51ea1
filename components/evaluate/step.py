"""evaluate: greedy answers on the untouched split, the SFT model beside the final one, scores with intervals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.config import EvaluateConfig
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.engine import answers, open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.task.answer import parse_answer
from hardcase.task.reward import DEFAULT_KIND, dpa
from hardcase.task.sample import Sample
from hardcase.task.score import chance, paired_difference, score

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("aspect", pa.string()),
        ("group", pa.string()),
        ("truth", pa.list_(pa.string())),
        ("answer", pa.list_(pa.string())),
        ("text", pa.string()),
        ("dpa", pa.float64()),
        ("exact", pa.bool_()),
    ]
)


def run(
    snapshot: Path,
    store: str,
    sft_model: Path | None,
    model: Path,
    config: EvaluateConfig,
    seed: int,
    scratch: Path,
    evaluation: Path,
    baseline: Path | None,
    scores: Path,
) -> None:
    """Write the final model's table, the SFT model's, and the scores of both.

    Args:
        snapshot: the manifest; its `eval` split is judged.
        store: where its shards lie.
        sft_model: the SFT model's folder, or None to score one model alone.
        model: the final model's folder.
        config: of answering and bootstrap.
        seed: of the bootstrap.
        scratch: folder for what was answered; a run that was stopped goes on from there.
        evaluation: Parquet, one row a sample, of the final model.
        baseline: the same of the SFT model; None with `sft_model` None.
        scores: JSON.

    Raises:
        InputError: the snapshot holds no evaluation rows.
    """
    samples = Snapshot.open(snapshot, store).load("eval")
    if not samples:
        raise InputError("snapshot: no rows in the evaluation split; raise `ingest.eval_share` or mark rows `eval`")
    aspects, groups = [sample.aspect for sample in samples], [sample.group for sample in samples]
    final = _judged(model, samples, config, seed, "evaluating the model", scratch / "final")
    pq.write_table(final, evaluation)
    report: dict[str, Any] = {
        "samples": len(samples),
        "groups": len(set(groups)),
        "reward": DEFAULT_KIND,
        "chance": chance([sample.truth for sample in samples], aspects, groups, DEFAULT_KIND, config.resamples, seed),
        "grpo": score(aspects, *_values(final), groups, config.resamples, seed),
        "sft": None,
        "gain": None,
    }
    if sft_model is not None and baseline is not None:
        first = _judged(sft_model, samples, config, seed, "evaluating the SFT model", scratch / "sft")
        pq.write_table(first, baseline)
        report["sft"] = score(aspects, *_values(first), groups, config.resamples, seed)
        report["gain"] = paired_difference(_values(first), _values(final), aspects, groups, config.resamples, seed)
    scores.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _judged(
    model: Path, samples: Sequence[Sample], config: EvaluateConfig, seed: int, what: str, kept: Path
) -> pa.Table:
    set_up_torch(seed, config.threads)
    answered = answers(
        open_engine(config.engine, model, seed),
        samples,
        copies=1,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=0,
        seed=seed,
        what=what,
        kept=kept,
    )
    rows = []
    for sample, (text,) in zip(samples, answered, strict=True):
        answer = parse_answer(text)
        rows.append(
            {
                "id": sample.id,
                "aspect": sample.aspect,
                "group": sample.group,
                "truth": sorted(sample.truth),
                "answer": None if answer is None else sorted(answer),
                "text": text,
                "dpa": dpa(answer, sample.truth, DEFAULT_KIND),
                "exact": answer == sample.truth,
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def _values(table: pa.Table) -> tuple[Any, Any]:
    return np.asarray(table["dpa"].to_pylist()), np.asarray(table["exact"].to_pylist())
