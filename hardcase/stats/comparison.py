"""Differences between two evaluations, with errors by group since samples of one group share an original.

The gate compares scores by bootstrap intervals. Drift compares means analytically: its tests share one budget of false
alarms, and so far out in the tails a bootstrap needs very many draws.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hardcase.task.score import FEWEST_GROUPS, Interval, bootstrap, name_statistics

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]


def compare_scores(
    before: Sequence[Row], after: Sequence[Row], *, paired: bool, levels: Sequence[float], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Compare scores, after minus before.

    Pairs are resampled together (Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8).
    Intervals of separate samples are combined by the method of variance estimates recovery (Zou and Donner, *Statistics
    in Medicine* 27, 2008).

    Both hold rows with `aspect`, `group`, `dpa` and `exact` of the same aspects; where `paired`, of the same samples in
    the same order. The result has the shape of `hardcase.task.score.paired_difference` for each of `levels`, which are
    coverages of the intervals.
    """
    first, second = (np.array([[row["dpa"], row["exact"]] for row in rows], np.float64).T for rows in (before, after))
    sides = [(after, second - first)] if paired else [(before, first), (after, second)]
    intervals = [
        bootstrap([row["aspect"] for row in rows], dpa, exact, [row["group"] for row in rows], resamples, seed, levels)
        for rows, (dpa, exact) in sides
    ]
    differences = intervals[0] if paired else [[*map(_subtract, *level)] for level in zip(*intervals, strict=True)]
    return [name_statistics(difference) for difference in differences]


def _subtract(first: Interval | None, second: Interval | None) -> Interval | None:
    """Return the difference of two independent statistics with its interval."""
    if first is None or second is None:
        return None
    value = second.value - first.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Interval(value, None, None)
    down = math.hypot(second.value - second.low, first.high - first.value)
    up = math.hypot(second.high - second.value, first.value - first.low)
    return Interval(value, value - down, value + up)


class PooledEvaluations:
    """Two evaluations as one table (`rows`), to compare means of columns with `freedom` degrees of freedom.

    Both may hold the same samples, so errors are those of a difference between two tables clustered by group over both
    (Liang and Zeger, *Biometrika* 73, 1986): right for separate, shared and partly shared samples alike, and sharper
    where they are shared. Fewer than `FEWEST_GROUPS` groups do not show the spread between groups; samples count singly
    then.
    """

    def __init__(self, before: pd.DataFrame, after: pd.DataFrame) -> None:
        self.rows = pd.concat([before, after], ignore_index=True)
        self._is_after = np.arange(len(self.rows)) >= len(before)
        by_group = min(before["group"].nunique(), after["group"].nunique()) >= FEWEST_GROUPS
        self._cluster = pd.factorize(self.rows["group" if by_group else "id"])[0]
        clusters = [len(np.unique(self._cluster[side])) for side in (self._is_after, ~self._is_after)]
        self.freedom = max(1, min(clusters) - 1)
        self._least_error = 1 / min(len(before), len(after))

    def compare_means(self, values: npt.ArrayLike, by_aspect: bool = False) -> tuple[Array, Array, Array]:
        """Return means before, means after and the t statistics of their differences (F) of columns (N, F).

        By aspect, both means are weighted to the pooled mix of the aspects that both tables hold.
        """
        values_NF = np.asarray(values, np.float64)
        strata = self._shared_aspects() if by_aspect else np.zeros(len(values_NF), np.int64)
        counted = strata >= 0
        means = np.zeros((2, values_NF.shape[1]))
        influence_NF = np.zeros_like(values_NF)
        for stratum in np.unique(strata[counted]):
            rows = strata == stratum
            weight = rows.sum() / counted.sum()
            for side, sign in ((0, -1), (1, 1)):
                chosen = rows & (self._is_after == bool(side))
                mean = values_NF[chosen].mean(axis=0)
                means[side] += weight * mean
                influence_NF[chosen] = sign * weight * (values_NF[chosen] - mean) / chosen.sum()
        sums_GF = np.zeros((self._cluster.max() + 1, values_NF.shape[1]))
        np.add.at(sums_GF, self._cluster, influence_NF)
        count = len(sums_GF)
        errors = np.sqrt((sums_GF**2).sum(axis=0) * count / max(1, count - 1))
        return means[0], means[1], (means[1] - means[0]) / np.maximum(errors, self._least_error)

    def _shared_aspects(self) -> npt.NDArray[np.int64]:
        """Number the aspects that both tables hold, -1 for the others; all alike where they share none."""
        codes = pd.factorize(self.rows["aspect"], sort=True)[0]
        shared = set(codes[self._is_after]) & set(codes[~self._is_after])
        if not shared:
            return np.zeros(len(codes), np.int64)
        return np.where(np.isin(codes, sorted(shared)), codes, -1).astype(np.int64)
