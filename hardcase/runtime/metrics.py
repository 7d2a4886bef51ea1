"""Scores and a confusion matrix for Kubeflow's pages. They prove nothing and are not sealed."""

import json
from pathlib import Path
from typing import Any

from hardcase.data.evaluations import read_evaluation
from hardcase.data.scores import PARTS, read_scores
from hardcase.task.sample import LETTERS


def show_scores(metrics: Any, confusion: Any, scores: Path, evaluation: Path) -> None:
    """Show the scores in KFP's `metrics`, and in `confusion` how often images with and without a flaw were flagged.

    An invalid answer flags no image.
    """
    content, names = read_scores(scores.read_bytes()), ("overall", "exact_match")
    numbers = {f"{part} {name}": content[part][name] for part in reversed(PARTS) if content[part] for name in names}
    for name, number in numbers.items():
        metrics.log_metric(name, number)
    Path(metrics.path).write_text(json.dumps(numbers), encoding="utf-8")  # kfp.local's cache wants a file
    counts = [[0, 0], [0, 0]]
    for row in read_evaluation(evaluation, "evaluation").select(["truth", "answer"]).to_pylist():
        for letter in LETTERS:
            counts[letter not in row["truth"]][letter not in (row["answer"] or ())] += 1
    confusion.log_confusion_matrix(["flaw", "no flaw"], counts)
    Path(confusion.path).write_text(json.dumps(counts), encoding="utf-8")
