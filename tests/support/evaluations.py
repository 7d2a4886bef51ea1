"""Tables of evaluations, drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hardcase.task.sample import ASPECTS

# Scores of a model that is above chance.
SCORES: dict[str, Any] = {
    "chance": {"overall": 18.0, "exact_match": 0.0625, "intervals": {"overall": [16.0, 20.0]}},
    "sft": None,
    "final": {"overall": 70.0, "exact_match": 0.7, "valid": 1.0, "intervals": {"overall": [66.0, 74.0]}},
    "gain": None,
}


def evaluated(
    exact: float | Mapping[str, float] = 0.7, rows: int = 400, draw: int = 0, prefix: str = "s", luck: float = 0.0
) -> pa.Table:
    """An evaluation: four rows a group, one an aspect; the same `draw` finds the same samples hard.

    Args:
        exact: share of right answers, of each aspect or of all.
        rows: how many.
        draw: which samples are hard.
        prefix: of ids and groups.
        luck: share of samples answered afresh, as another seed of training does.
    """
    share = dict.fromkeys(ASPECTS, exact) if isinstance(exact, float) else exact
    hardness = np.random.default_rng(draw).random(rows)
    anew = np.random.default_rng([draw, 1]).random((2, rows))
    hardness = np.where(anew[0] < luck, anew[1], hardness)
    aspects = [ASPECTS[row % 4] for row in range(rows)]
    right = [bool(hard < share[aspect]) for hard, aspect in zip(hardness, aspects, strict=True)]
    return pa.table(
        {
            "id": [f"{prefix}{row}" for row in range(rows)],
            "aspect": aspects,
            "group": [f"{prefix}g{row // 4}" for row in range(rows)],
            "truth": pa.array([["A"]] * rows, pa.list_(pa.string())),
            "answer": pa.array([["A"] if is_right else [] for is_right in right], pa.list_(pa.string())),
            "text": [""] * rows,
            "dpa": [float(is_right) for is_right in right],
            "exact": right,
        }
    )
