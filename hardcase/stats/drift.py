"""Drift between two evaluations: six tests that share one budget of false alarms (`docs/decisions/0002`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from hardcase.config import DriftConfig
from hardcase.data.evaluations import SIZES
from hardcase.stats.comparison import PooledEvaluations
from hardcase.task.sample import ASPECTS, LETTERS

# Shares of `DriftConfig.alpha`. The first two show whether the model got worse and move together, so that their
# false alarms overlap; the others show what changed.
BUDGET: Final = {
    "partial credit": 0.4,
    "exact match": 0.45,
    "invalid answers": 0.0375,
    "answer size": 0.0375,
    "answer letters": 0.0375,
    "aspect mix": 0.0375,
}


@dataclass(frozen=True, slots=True)
class DriftTest:
    """Result of one test; of categories, the values are those of the one that changed most, with its share."""

    name: str  # a key of `BUDGET`
    drifted: bool  # `p_value` is within `threshold`, and the change is large enough to matter
    statistic: float  # the change from reference to current in standard errors
    p_value: float  # one-sided for scores (a fall) and invalid answers (a rise); else two-sided, over all categories
    threshold: float  # its share of the budget
    reference: float | str
    current: float | str


def decide(reference: pd.DataFrame, current: pd.DataFrame, config: DriftConfig) -> list[DriftTest]:
    """Compare two evaluations, read by `hardcase.data.evaluations.read_flat_evaluation`, by each test of `BUDGET`."""
    pooled = PooledEvaluations(reference, current)
    rows = pooled.rows

    def compare_values(name: str, column: str, sign: int, *, by_aspect: bool) -> DriftTest:
        before, after, statistic = (float(part[0]) for part in pooled.compare_means(rows[[column]], by_aspect))
        p_value, threshold = float(stats.t.sf(sign * statistic, pooled.freedom)), config.alpha * BUDGET[name]
        drifted = p_value <= threshold and sign * (after - before) >= config.min_drop
        return DriftTest(name, drifted, statistic, p_value, threshold, before, after)

    def compare_shares(name: str, labels: Sequence[str], members: npt.NDArray[np.bool_]) -> DriftTest:
        before, after, statistics = pooled.compare_means(members)
        large = np.abs(after - before) >= config.min_shift
        most = int(np.argmax(np.abs(statistics) + np.where(large, len(rows), 0)))
        p_value = min(1.0, len(labels) * 2 * float(stats.t.sf(abs(statistics[most]), pooled.freedom)))
        threshold = config.alpha * BUDGET[name]
        drifted = bool(large[most] and p_value <= threshold)
        shares = [f"{labels[most]}: {100 * share[most]:.1f}%" for share in (before, after)]
        return DriftTest(name, drifted, float(statistics[most]), p_value, threshold, *shares)

    answers, sizes, aspects = (rows[column].to_numpy(str) for column in ("answer", "answer_size", "aspect"))
    letters = np.stack([np.char.find(answers, letter) >= 0 for letter in LETTERS], axis=1)
    names = (*ASPECTS, *sorted(set(aspects) - set(ASPECTS)))
    return [
        compare_values("partial credit", "dpa", -1, by_aspect=True),
        compare_values("exact match", "exact", -1, by_aspect=True),
        compare_values("invalid answers", "invalid", 1, by_aspect=False),
        compare_shares("answer size", SIZES, sizes[:, None] == np.array(SIZES)),
        compare_shares("answer letters", LETTERS, letters),
        compare_shares("aspect mix", names, aspects[:, None] == np.array(names)),
    ]
