"""What Kubeflow's pages show of an evaluation.

They prove nothing and are not sealed: what a model was made of is in the artifacts beside them.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from hardcase.task.sample import LETTERS


class Metrics(Protocol):
    """What is used of KFP's metrics."""

    @property
    def path(self) -> str: ...

    def log_metric(self, metric: str, value: float) -> None: ...


def show_scores(metrics: Metrics, confusion: Any, scores: Path, evaluation: Path) -> None:
    """Show the scores, and how often a picture with a flaw was flagged, and one without; an invalid answer flags none.

    Args:
        metrics: to show the scores.
        confusion: KFP's classification metrics.
        scores: what evaluate wrote.
        evaluation: the table.
    """
    found = json.loads(scores.read_text(encoding="utf-8"))
    parts = {"final": found["final"], "sft": found["sft"], "chance": found["chance"]}
    known = {part: each for part, each in parts.items() if each}
    numbers = {f"{part} {name}": each[name] for part, each in known.items() for name in ("overall", "exact_match")}
    for name, number in numbers.items():
        metrics.log_metric(name, number)
    Path(metrics.path).write_text(json.dumps(numbers), encoding="utf-8")  # kfp.local's cache wants a file
    counts = [[0, 0], [0, 0]]
    for row in pq.read_table(evaluation, columns=["truth", "answer"]).to_pylist():
        for letter in LETTERS:
            counts[letter not in row["truth"]][letter not in (row["answer"] or ())] += 1
    confusion.log_confusion_matrix(["flaw", "no flaw"], counts)
    Path(confusion.path).write_text(json.dumps(counts), encoding="utf-8")
