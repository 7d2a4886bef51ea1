"""The gate: a new model becomes the champion unless it is shown to be worse than the one it would replace.

Paired bootstrap over groups (Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8) on the
samples that both evaluations hold; on separate samples, two bootstraps put together by the method of variance estimates
recovery (Zou and Donner, *Statistics in Medicine* 27, 2008). The reading of "not worse" is docs/decisions/0003.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from hardcase.config import RegisterConfig
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import ASPECTS
from hardcase.task.score import paired_difference

# Drift's tests of whether answers got worse; the others tell what changed.
WORSE: Final = ("partial credit", "exact match", "invalid answers")
Row = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The gate's verdict.

    Attributes:
        verdict: `rejected` if anything speaks against the model.
        reasons: sentences; of a rejected model what speaks against it, else what speaks for it.
        differences: new minus champion, in the shape of `paired_difference`, and on what; None if nothing was compared.
    """

    verdict: Literal["promoted", "rejected"]
    reasons: list[str]
    differences: dict[str, Any] | None = None


def decide(
    scores: Mapping[str, Any],
    evaluation: pa.Table,
    champion: pa.Table | None,
    drift: Mapping[str, Any],
    config: RegisterConfig,
    seed: int,
    against: str = "",
) -> Decision:
    """Judge a model by its evaluation.

    Args:
        scores: what evaluate reports (`scores.json`).
        evaluation: its table, one row a sample.
        champion: the champion's table, or None if there is none.
        drift: what drift reports (`drift.json`), against the champion if there is one.
        config: of the gate.
        seed: of the bootstrap.
        against: what to call the champion in the reasons.

    Raises:
        HardcaseError: the champion's table holds values that are not finite, or unknown aspects.
    """
    rows = evaluation.select(["id", "aspect", "group", "truth", "dpa", "exact"]).to_pylist()
    if flaws := [*_not_finite(scores), *_unfit(rows, config.min_rows)]:
        return Decision("rejected", flaws)
    if champion is None:
        return Decision("promoted", [f"the first champion: all metrics finite on {len(rows)} rows"])
    before = champion.select(["id", "aspect", "group", "truth", "dpa", "exact"]).to_pylist()
    name = f"champion {against}".strip()
    flaws = [_sentence(test) for test in drift["tests"] if test["drifted"] and test["name"] in WORSE]
    here, there = ({row["aspect"] for row in table} for table in (rows, before))
    flaws += [f"{ASPECT_NAMES[a]}: no rows, while {name} was judged on it" for a in ASPECTS if a in there - here]
    if not here & there:
        return Decision("rejected", flaws)
    differences = _differences(before, rows, config, seed)
    worse, level = _worse(differences, name)
    return Decision("rejected" if flaws or worse else "promoted", [*flaws, *worse] or level, differences)


def _not_finite(scores: Mapping[str, Any]) -> list[str]:
    flaws = [f"scores: {path} is {value}, not finite" for path, value in _leaves(scores) if not math.isfinite(value)]
    final = scores.get("final") or {}
    missing = [key for key in ("overall", "exact_match") if not isinstance(final.get(key), int | float)]
    return flaws + [f"scores: final.{key} is missing" for key in missing]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number, with the keys that lead to it."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}".strip("."))
    if isinstance(value, int | float):
        yield path, value


def _unfit(rows: list[Row], least: int) -> list[str]:
    flaws = [f"{len(rows)} evaluation rows, fewer than the {least} wanted"] if len(rows) < least else []
    unread = sum(row["exact"] is None or row["dpa"] is None or not 0 <= row["dpa"] <= 1 for row in rows)
    return flaws + ([f"{unread} of {len(rows)} evaluation rows carry no score from 0 to 1"] if unread else [])


def _sentence(test: Mapping[str, Any]) -> str:
    before, after = (f"{test[end]:.3f}" for end in ("reference", "current"))
    return f"drift: {test['name']} went from {before} to {after} (p = {test['p_value']:.2g})"


def _differences(before: list[Row], after: list[Row], config: RegisterConfig, seed: int) -> dict[str, Any]:
    """New minus champion; the intervals of the four aspects share `alpha` (Bonferroni)."""
    earlier = {_key(row): row for row in before}
    shared = [row for row in after if _key(row) in earlier]
    paired = len(shared) >= config.min_rows
    common = {row["aspect"] for row in before} & {row["aspect"] for row in after}
    tables = [[earlier[_key(row)] for row in shared], shared] if paired else [before, after]
    first, second = ([row for row in table if row["aspect"] in common] for table in tables)

    def compared(level: float) -> Any:
        if paired:
            return _difference(_values(first), second, config, seed, level)
        zeros = [np.zeros((2, len(table))) for table in (first, second)]
        alone = [_difference(zeros[side], table, config, seed, level) for side, table in enumerate((first, second))]
        return _apart(*alone)

    overall, by_aspect = compared(1 - config.alpha), compared(1 - config.alpha / len(ASPECTS))
    return {
        **overall,
        "by_aspect": by_aspect["by_aspect"],
        "paired": paired,
        "samples": len(second),
        "groups": len({row["group"] for row in second}),
    }


def _key(row: Row) -> tuple[Any, ...]:
    # The group, made of the pictures where no row names one, tells apart two sources that both count their rows.
    return row["id"], row["aspect"], row["group"], tuple(sorted(row["truth"]))


def _values(rows: list[Row]) -> Any:
    return np.array([[row["dpa"], row["exact"]] for row in rows], dtype=np.float64).T


def _difference(first: Any, second: list[Row], config: RegisterConfig, seed: int, level: float) -> Any:
    aspects, groups = [row["aspect"] for row in second], [row["group"] for row in second]
    return paired_difference(tuple(first), tuple(_values(second)), aspects, groups, config.resamples, seed, level)


def _apart(first: Any, second: Any) -> Any:
    """The difference of two independent scores with intervals, key by key."""
    if first is None or "value" not in first:
        return first and {key: _apart(first[key], second[key]) for key in first}
    value = second["value"] - first["value"]
    down = math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    up = math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return {"value": value, "low": value - down, "high": value + up}


def _worse(differences: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """What is significantly worse, and the sentence for when nothing is."""
    place = f"{differences['samples']} {'shared' if differences['paired'] else 'other'} samples"
    where = f"{place} in {differences['groups']} groups"

    def said(what: str, found: Mapping[str, float]) -> str:
        return f"{what} {found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}] against {name} on {where}"

    parts = {"overall": differences["overall"]}
    parts |= {ASPECT_NAMES[aspect]: found for aspect, found in differences["by_aspect"].items() if found}
    worse = [f"{said(what, found)}: significantly worse" for what, found in parts.items() if found["high"] < 0]
    return worse, [f"{said('overall', parts['overall'])}, no aspect significantly worse"]
