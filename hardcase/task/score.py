"""Scores 0 to 100 per aspect and overall, their chance level, and their uncertainty.

The scale is that of arXiv 2511.10055 (overall = mean of the four aspects). Samples of one group share an original, so
whole groups are drawn again, not samples: the cluster bootstrap with percentile intervals (Davison and Hinkley,
*Bootstrap Methods and their Application*, 1997, section 3.8). The random generator is NumPy's PCG64, seeded.
"""

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hardcase.errors import HardcaseError
from hardcase.task.answer import format_answer
from hardcase.task.reward import dpa as partial_credit
from hardcase.task.sample import ASPECTS, LETTERS

if TYPE_CHECKING:
    from hardcase.config import RewardKind

Array = npt.NDArray[np.float64]
Names = Sequence[str]
Values = Sequence[float] | npt.NDArray[Any]
Answers = tuple[Values, Values]  # partial credit and exactness

FEWEST_GROUPS: Final = 30  # fewer do not show how much groups differ, so no interval and no verdict rests on them
TOO_FEW_GROUPS: Final = "too few groups"  # in place of an interval
SUBSETS: Final = tuple(frozenset(letters) for size in range(5) for letters in combinations(LETTERS, size))
CELLS: Final = 2_000_000  # resamples × groups in memory at once


class Interval(NamedTuple):
    """A statistic with its bounds, which are None where too few groups carry it."""

    value: float
    low: float | None
    high: float | None


def score(
    aspects: Names, dpa: Values, exact: Values, groups: Names, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Score a table of answers, one entry a sample in each argument.

    Args:
        aspects: each one of `ASPECTS`.
        dpa: partial credit, 0 to 1.
        exact: whether the answer is the truth.
        groups: which samples belong together.
        resamples: bootstrap resamples over groups.
        seed: of the bootstrap.

    Returns:
        `overall` and `by_aspect` in 0 to 100, `exact_match` in 0 to 1, and `intervals` of the same keys, each the 95%
        `[low, high]`, or None on fewer than `FEWEST_GROUPS` groups. An aspect without samples is None, and overall is
        the mean of the others.

    Raises:
        HardcaseError: no samples, an unknown aspect, columns of unequal length, or a value that is not finite.
    """
    (intervals,) = bootstrap(aspects, dpa, exact, groups, resamples, seed, [0.95])
    values = [None if interval is None else interval.value for interval in intervals]
    bounds = [None if interval is None or interval.low is None else [*interval[1:]] for interval in intervals]
    return {**name_statistics(values), "intervals": name_statistics(bounds)}


def chance(
    truths: Sequence[Collection[str]], aspects: Names, groups: Names, kind: "RewardKind", resamples: int, seed: int
) -> dict[str, Any]:
    """Score guessing on these samples: the exact expectation over a uniformly random one of the sixteen answers.

    The result has the shape of `score`; its intervals show how the level depends on which groups were drawn.
    """
    expected = {truth: float(np.mean([partial_credit(guess, truth, kind) for guess in SUBSETS])) for truth in SUBSETS}
    values = [expected[frozenset(truth)] for truth in truths]
    return score(aspects, values, [1 / len(SUBSETS)] * len(values), groups, resamples, seed)


def best_constant(truths: Sequence[Collection[str]], aspects: Names, kind: "RewardKind") -> dict[str, Any]:
    """Return the `answer` with the highest `overall` score among those that are the same for every sample."""

    def measure(answer: frozenset[str]) -> float:
        credit = {truth: partial_credit(answer, truth, kind) for truth in SUBSETS}
        columns = [credit[frozenset(truth)] for truth in truths], [0.0] * len(truths), ["all"] * len(truths)
        return float(_statistics(_group_sums(aspects, *columns)[0])[0])

    best = max(SUBSETS, key=measure)
    return {"answer": format_answer(best), "overall": measure(best)}


def paired_difference(
    first: Answers, second: Answers, aspects: Names, groups: Names, resamples: int, seed: int, level: float = 0.95
) -> dict[str, Any]:
    """Measure how much better `second` answered the same samples than `first`, in the units of `score`.

    `level` is the coverage of the intervals: of `overall`, `exact_match` and `by_aspect` each `{"value", "low",
    "high"}`, None for an aspect without samples.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (*first, *second)]
    if len({column.shape for column in columns}) > 1:
        raise HardcaseError("paired scores: the two models have not answered equally many samples; compare one table")
    gains = columns[2] - columns[0], columns[3] - columns[1]
    return name_statistics(*bootstrap(aspects, *gains, groups, resamples, seed, [level]))


def name_statistics(values: Sequence[Any]) -> dict[str, Any]:
    """Name six values: overall, exact match and the four aspects; an interval becomes `{"value", "low", "high"}`."""
    overall, exact, *rest = (value._asdict() if isinstance(value, Interval) else value for value in values)
    return {"overall": overall, "exact_match": exact, "by_aspect": dict(zip(ASPECTS, rest, strict=True))}


def bootstrap(
    aspects: Names, dpa: Values, exact: Values, groups: Names, resamples: int, seed: int, levels: Sequence[float]
) -> list[list[Interval | None]]:
    """Return overall, exact match and the four aspects with percentile bounds, for each level of coverage."""
    sums_GC = _group_sums(aspects, dpa, exact, groups)
    enough = _count_groups(sums_GC) >= FEWEST_GROUPS
    count = len(sums_GC)
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, step := max(1, CELLS // count)):
        size = min(step, resamples - start)
        picks_RG = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times_RG = np.bincount(picks_RG.ravel(), minlength=size * count).reshape(size, count)
        # einsum adds in one order whatever the number of threads; a BLAS product does not.
        drawn.append(_statistics(np.einsum("rg,gc->rc", times_RG.astype(np.float64), sums_GC)))
    values, samples = _statistics(sums_GC.sum(axis=0)), np.concatenate(drawn)

    def measure(statistic: int, tail: float) -> Interval | None:
        if np.isnan(values[statistic]):
            return None
        if not enough[statistic]:
            return Interval(float(values[statistic]), None, None)
        low, high = np.nanquantile(samples[:, statistic], [tail, 1 - tail])
        return Interval(float(values[statistic]), float(low), float(high))

    return [[measure(statistic, (1 - level) / 2) for statistic in range(values.size)] for level in levels]


def _group_sums(aspects: Names, dpa: Values, exact: Values, groups: Names) -> Array:
    """Sum by group: partial credit in each aspect, samples in each aspect, exact matches."""
    credit, exactness = np.asarray(dpa, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    lengths = {len(aspects), len(groups), *credit.shape, *exactness.shape}
    if len(lengths) > 1 or lengths == {0}:
        raise HardcaseError(
            f"scores: columns of {sorted(lengths)} samples; give equally many of each, and at least one"
        )
    if unknown := set(aspects) - set(ASPECTS):
        raise HardcaseError(f"scores: aspect {min(unknown)!r} is not known; name one of {', '.join(ASPECTS)}")
    if not (np.isfinite(credit).all() and np.isfinite(exactness).all()):
        raise HardcaseError("scores: a value of partial credit or exact match is not finite; evaluate again")
    members = {name: number for number, name in enumerate(sorted(set(groups)))}
    index = np.array([members[name] for name in groups])
    aspect = np.array([ASPECTS.index(name) for name in aspects])
    sums_GC = np.zeros((len(members), 2 * len(ASPECTS) + 1))
    np.add.at(sums_GC, (index, aspect), credit)
    np.add.at(sums_GC, (index, aspect + len(ASPECTS)), 1.0)
    np.add.at(sums_GC[:, -1], index, exactness)
    return sums_GC


def _count_groups(sums: Array) -> Array:
    """Count the groups that overall, exact match and the four aspects rest on (6).

    A group that has the weight w in overall counts as one of 1 / Σ w² groups of equal weight. Where an aspect has only
    one group, that group has a quarter of the weight, and overall rests on fewer than 16 groups.
    """
    holds_GA = sums[:, len(ASPECTS) : 2 * len(ASPECTS)] > 0
    by_aspect = holds_GA.sum(axis=0)
    weights_G = (holds_GA / np.maximum(1, by_aspect)).sum(axis=1) / np.count_nonzero(by_aspect)
    return np.array([round(1 / (weights_G**2).sum(), 6), len(sums), *by_aspect])


def _statistics(sums: Array) -> Array:
    """Turn sums (…, 9) into overall, exact match and the four aspects (…, 6); NaN for an aspect without samples."""
    credit, counts, exactness = np.split(sums, [len(ASPECTS), 2 * len(ASPECTS)], axis=-1)
    with np.errstate(invalid="ignore"):
        by_aspect = 100 * credit / counts
    overall = np.nanmean(by_aspect, axis=-1, keepdims=True)
    return np.concatenate([overall, exactness / counts.sum(axis=-1, keepdims=True), by_aspect], axis=-1)
