"""What Kubeflow's pages show of a step: numbers, tables, text.

They prove nothing and are not sealed: what a model was made of is in the artifacts beside them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from hardcase.task.sample import LETTERS


class Metrics(Protocol):
    """What is used of KFP's metrics."""

    @property
    def path(self) -> str: ...

    def log_metric(self, metric: str, value: float) -> None: ...


def show_numbers(metrics: Metrics, numbers: Mapping[str, float | None]) -> None:
    """Numbers by name; what is None is left out."""
    known = {name: float(number) for name, number in numbers.items() if number is not None}
    for name, number in known.items():
        metrics.log_metric(name, number)
    Path(metrics.path).write_text(json.dumps(known), encoding="utf-8")  # kfp.local's cache wants a file


def show_training(metrics: Metrics, log: Path, names: Mapping[str, str]) -> None:
    """What a training's log said last of each of these.

    Args:
        metrics: to show them.
        log: JSON lines.
        names: key in the log to name.
    """
    last: dict[str, Any] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        last |= json.loads(line)
    show_numbers(metrics, {name: last.get(key) for key, name in names.items()})


def show_scores(metrics: Metrics, confusion: Any, scores: Path, evaluation: Path) -> None:
    """The scores, and how often a picture with a flaw was flagged, and one without; an invalid answer flags none.

    Args:
        metrics: to show the scores.
        confusion: KFP's classification metrics.
        scores: what evaluate wrote.
        evaluation: the table.
    """
    found = json.loads(scores.read_text(encoding="utf-8"))
    parts = {"final": found["grpo"], "sft": found["sft"], "chance": found["chance"]}
    known = {part: each for part, each in parts.items() if each}
    names = ("overall", "exact_match")
    show_numbers(metrics, {f"{part} {name}": each[name] for part, each in known.items() for name in names})
    counts = [[0, 0], [0, 0]]
    for row in pq.read_table(evaluation, columns=["truth", "answer"]).to_pylist():
        for letter in LETTERS:
            counts[letter not in row["truth"]][letter not in (row["answer"] or ())] += 1
    confusion.log_confusion_matrix(["flaw", "no flaw"], counts)
    Path(confusion.path).write_text(json.dumps(counts), encoding="utf-8")
