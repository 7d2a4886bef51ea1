"""The gate: a model above chance becomes the champion unless it is shown to be worse than the one it would replace.

What "not worse" means is decided in docs/decisions/0003, what "above chance" means in 0018.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from hardcase.config import RegisterConfig
from hardcase.stats.comparison import compare_scores
from hardcase.stats.learning import describe_against_chance, describe_overall, is_above_chance
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import ASPECTS
from hardcase.task.score import FEWEST_GROUPS, TOO_FEW_GROUPS

# Drift's tests of whether answers got worse; the others show what changed.
WORSE: Final = ("partial credit", "exact match", "invalid answers")
COLUMNS: Final = ["id", "aspect", "group", "truth", "dpa", "exact"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The gate's verdict, with sentences against a rejected model or for a promoted one.

    `differences` are new minus champion in the shape of `paired_difference`, with `paired`, `samples` and `groups`.
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
    """Judge a model by `scores.json`, `drift.json` and its evaluation beside the champion's, which `against` names."""
    rows = evaluation.select(COLUMNS).to_pylist()
    if flaws := [*_not_finite(scores), *_not_scored(rows, config.min_rows)]:
        return Decision("rejected", flaws)
    flaws = _below_floor(scores, config)
    if champion is None:
        first = f"the first champion: {describe_against_chance(scores)}, on {len(rows)} rows"
        return Decision("rejected" if flaws else "promoted", flaws or [first])
    before = champion.select(COLUMNS).to_pylist()
    name = f"champion {against}".strip()
    flaws += [_describe_alarm(test) for test in drift["tests"] if test["drifted"] and test["name"] in WORSE]
    aspects, earlier = ({row["aspect"] for row in table} for table in (rows, before))
    flaws += [f"{ASPECT_NAMES[a]}: no rows, while {name} was judged on it" for a in ASPECTS if a in earlier - aspects]
    if not aspects & earlier:
        return Decision("rejected", flaws)
    differences = _compare(before, rows, config, seed)
    worse, on_par = _explain(differences, name)
    flaws += worse
    return Decision("rejected" if flaws else "promoted", flaws or [on_par], differences)


def _not_finite(scores: Mapping[str, Any]) -> list[str]:
    flaws = [f"scores: {path} is {value}, not finite" for path, value in _leaves(scores) if not math.isfinite(value)]
    needed = [("final", "overall"), ("final", "exact_match"), ("final", "valid"), ("chance", "overall")]
    missing = [(part, key) for part, key in needed if not isinstance((scores.get(part) or {}).get(key), int | float)]
    return flaws + [f"scores: {part}.{key} is missing" for part, key in missing]


def _below_floor(scores: Mapping[str, Any], config: RegisterConfig) -> list[str]:
    """Return a sentence for each bound that every champion must reach and this model does not."""
    final, least, flaws = scores["final"], config.min_overall, []
    bounds = final["intervals"]["overall"]
    if least is None and not is_above_chance(scores):
        flaws.append(describe_against_chance(scores))
    elif least and (bounds is None or bounds[0] < least):
        flaws.append(f"overall {describe_overall(final)} is not shown to reach register.min_overall, {least:g}")
    # Invalid answers may cost no more than guessing earns.
    wanted = 1 - scores["chance"]["overall"] / 100 if config.min_valid is None else config.min_valid
    if final["valid"] < wanted:
        flaws.append(f"{final['valid']:.1%} of the answers are valid, fewer than the {wanted:.1%} wanted")
    return flaws


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number under the keys that lead to it."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}".strip("."))
    if isinstance(value, int | float):
        yield path, value


def _not_scored(rows: list[Row], least: int) -> list[str]:
    flaws = [f"{len(rows)} evaluation rows, fewer than the {least} wanted"] if len(rows) < least else []
    unscored = sum(row["exact"] is None or row["dpa"] is None or not 0 <= row["dpa"] <= 1 for row in rows)
    return flaws + ([f"{unscored} of {len(rows)} evaluation rows carry no score from 0 to 1"] if unscored else [])


def _describe_alarm(test: Mapping[str, Any]) -> str:
    before, after = (f"{test[end]:.3f}" for end in ("reference", "current"))
    return f"drift: {test['name']} went from {before} to {after} (p = {test['p_value']:.2g})"


def _compare(before: list[Row], after: list[Row], config: RegisterConfig, seed: int) -> dict[str, Any]:
    """Return new minus champion; the intervals of the four aspects share `alpha` (Bonferroni)."""
    earlier = {_key(row): row for row in before}
    shared = [row for row in after if _key(row) in earlier]
    paired = len(shared) >= config.min_rows
    common = {row["aspect"] for row in before} & {row["aspect"] for row in after}
    tables = [[earlier[_key(row)] for row in shared], shared] if paired else [before, after]
    first, second = ([row for row in table if row["aspect"] in common] for table in tables)
    levels = (1 - config.alpha, 1 - config.alpha / len(ASPECTS))
    overall, by_aspect = compare_scores(
        first, second, paired=paired, levels=levels, resamples=config.resamples, seed=seed
    )
    return {
        **overall,
        "by_aspect": by_aspect["by_aspect"],
        "paired": paired,
        "samples": len(second),
        "groups": len({row["group"] for row in second}),
    }


def _key(row: Row) -> tuple[Any, ...]:
    # Groups come from the images where no row names one. They tell apart two sources that both number their rows.
    return row["id"], row["aspect"], row["group"], tuple(sorted(row["truth"]))


def _explain(differences: Mapping[str, Any], name: str) -> tuple[list[str], str]:
    """Return a sentence for each score that is significantly worse, and the one for when none is.

    A score on too few groups has no interval and is never significantly worse.
    """
    samples = f"{differences['samples']} {'shared' if differences['paired'] else 'other'} samples"

    def describe(score: str, difference: Mapping[str, Any]) -> str:
        low, high = difference["low"], difference["high"]
        interval = TOO_FEW_GROUPS if low is None else f"{low:+.1f}, {high:+.1f}"
        groups = f"{samples} in {differences['groups']} groups"
        return f"{score} {difference['value']:+.1f} [{interval}] against {name} on {groups}"

    scores = {"overall": differences["overall"]}
    scores |= {ASPECT_NAMES[aspect]: part for aspect, part in differences["by_aspect"].items() if part}
    few = [score for score, part in scores.items() if part["high"] is None]
    worse = [
        f"{describe(score, part)}: significantly worse"
        for score, part in scores.items()
        if score not in few and part["high"] < 0
    ]
    unknown = f"; fewer than {FEWEST_GROUPS} groups are too few to judge {', '.join(few)}" if few else ""
    return worse, f"{describe('overall', scores['overall'])}, no aspect significantly worse{unknown}"
