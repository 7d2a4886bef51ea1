"""What counts as drift between two evaluations: six tests that share one budget of false alarms.

Samples of one group share an original, and both evaluations may hold the same samples, so errors are those of a
difference between two tables clustered by group over both (Liang and Zeger, *Biometrika* 73, 1986): right for separate,
shared and partly shared samples alike, and sharper where they are shared. Thresholds: `docs/decisions/0002`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from hardcase.config import DriftConfig
from hardcase.data.evaluations import SIZES
from hardcase.task.sample import ASPECTS, LETTERS

Array = npt.NDArray[np.float64]

# Shares of `DriftConfig.alpha`. The first two tell whether the model got worse and move together, so that their
# false alarms overlap; the others tell what changed.
BUDGET: Final = {
    "partial credit": 0.4,
    "exact match": 0.45,
    "invalid answers": 0.0375,
    "answer size": 0.0375,
    "answer letters": 0.0375,
    "aspect mix": 0.0375,
}
FEWEST_GROUPS: Final = 30


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One test.

    Attributes:
        name: a key of `BUDGET`.
        drifted: `p_value` is within `threshold` and the change is large enough to matter.
        statistic: the change from reference to current in standard errors.
        p_value: one-sided for scores (a fall) and invalid answers (a rise); else two-sided, over all categories.
        threshold: its share of the budget.
        reference: the value there; for categories the one that changed most, with its share.
        current: the same of the current table.
    """

    name: str
    drifted: bool
    statistic: float
    p_value: float
    threshold: float
    reference: float | str
    current: float | str


def decide(reference: pd.DataFrame, current: pd.DataFrame, config: DriftConfig) -> list[DriftTest]:
    """Compare two evaluations.

    Args:
        reference: one row a sample, with the columns that `hardcase.data.evaluations.read_flat_evaluation` gives.
        current: the same of the model that is judged.
        config: the budget, and how large a change must be to matter.

    Returns:
        One verdict a test, in the order of `BUDGET`.
    """
    both = pd.concat([reference, current], ignore_index=True)
    is_current = np.arange(len(both)) >= len(reference)
    crowded = min(reference["group"].nunique(), current["group"].nunique()) >= FEWEST_GROUPS
    # So few groups tell nothing about the spread between groups: samples count singly.
    cluster = pd.factorize(both["group" if crowded else "id"])[0]
    freedom = max(1, min(len(np.unique(cluster[is_current])), len(np.unique(cluster[~is_current]))) - 1)

    def compare(values: Array, strata: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
        before, after, error = _compared(values, strata, is_current, cluster)
        return before, after, (after - before) / np.maximum(error, 1 / min(len(reference), len(current)))

    def one_sided(name: str, column: str, sign: int, strata: npt.NDArray[np.int64]) -> DriftTest:
        before, after, scores = compare(both[[column]].to_numpy(np.float64), strata)
        p_value, threshold = float(stats.t.sf(sign * scores[0], freedom)), config.alpha * BUDGET[name]
        drifted = p_value <= threshold and sign * (after[0] - before[0]) >= config.min_drop
        return DriftTest(name, bool(drifted), float(scores[0]), p_value, threshold, float(before[0]), float(after[0]))

    def categories(name: str, labels: Sequence[str], values: npt.NDArray[np.bool_]) -> DriftTest:
        before, after, scores = compare(values.astype(np.float64), everything)
        large = np.abs(after - before) >= config.min_shift
        most = int(np.argmax(np.abs(scores) + np.where(large, len(both), 0)))
        p_value = min(1.0, len(labels) * 2 * float(stats.t.sf(abs(scores[most]), freedom)))
        threshold = config.alpha * BUDGET[name]
        shown = [f"{labels[most]}: {100 * share[most]:.1f}%" for share in (before, after)]
        return DriftTest(
            name, bool(large[most] and p_value <= threshold), float(scores[most]), p_value, threshold, *shown
        )

    everything, aspect = np.zeros(len(both), dtype=np.int64), _shared_strata(both["aspect"], is_current)
    answers = both["answer"].to_numpy(str)
    letters = np.stack([np.char.find(answers, letter) >= 0 for letter in LETTERS], axis=1)
    sizes, aspects = both["answer_size"].to_numpy(str), both["aspect"].to_numpy(str)
    names = (*ASPECTS, *sorted(set(aspects) - set(ASPECTS)))
    return [
        one_sided("partial credit", "dpa", -1, aspect),
        one_sided("exact match", "exact", -1, aspect),
        one_sided("invalid answers", "invalid", 1, everything),
        categories("answer size", SIZES, sizes[:, None] == np.array(SIZES)),
        categories("answer letters", LETTERS, letters),
        categories("aspect mix", names, aspects[:, None] == np.array(names)),
    ]


def _shared_strata(aspects: pd.Series, is_current: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Numbers of the aspects that both tables hold, -1 for the others; one stratum where they share none."""
    codes = pd.factorize(aspects, sort=True)[0]
    shared = set(codes[is_current]) & set(codes[~is_current])
    if not shared:
        return np.zeros(len(codes), dtype=np.int64)
    return np.where(np.isin(codes, sorted(shared)), codes, -1).astype(np.int64)


def _compared(
    values: Array,
    strata: npt.NDArray[np.int64],
    is_current: npt.NDArray[np.bool_],
    cluster: npt.NDArray[np.int64],
) -> tuple[Array, Array, Array]:
    """Means of reference and current, both weighted to the pooled mix of strata, and the error of their difference."""
    counted = strata >= 0
    means = np.zeros((2, values.shape[1]))
    influence_NF = np.zeros_like(values)
    for stratum in np.unique(strata[counted]):
        rows = strata == stratum
        weight = rows.sum() / counted.sum()
        for side, sign in ((0, -1), (1, 1)):
            here = rows & (is_current == bool(side))
            mean = values[here].mean(axis=0)
            means[side] += weight * mean
            influence_NF[here] = sign * weight * (values[here] - mean) / here.sum()
    sums_GF = np.zeros((cluster.max() + 1, values.shape[1]))
    np.add.at(sums_GF, cluster, influence_NF)
    count = len(sums_GF)
    return means[0], means[1], np.sqrt((sums_GF**2).sum(axis=0) * count / max(1, count - 1))
