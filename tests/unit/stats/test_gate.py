import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from hardcase.config import RegisterConfig
from hardcase.stats.gate import Decision, decide
from hardcase.task.reward import DEFAULT_KIND, dpa
from hardcase.task.sample import ASPECTS
from hardcase.task.score import SUBSETS, chance, score
from tests.support.evaluations import SCORES, evaluated

CONFIG = RegisterConfig(resamples=500)
CALM: dict[str, Any] = {"drifted": False, "reference": None, "tests": []}


def judged(new: pa.Table, old: pa.Table | None, scores: Any = SCORES, drift: Any = CALM, **config: Any) -> Decision:
    return decide(scores, new, old, drift, CONFIG.model_copy(update=config), 0, "m:1")


def alarm(name: str, drifted: bool = True) -> dict[str, Any]:
    test = {"name": name, "drifted": drifted, "statistic": -4.0, "p_value": 0.0001, "threshold": 0.004}
    return {"drifted": drifted, "reference": "r", "tests": [{**test, "reference": 0.7, "current": 0.5}]}


def test_first_model_is_promoted() -> None:
    decision = judged(evaluated(), None)
    assert decision.verdict == "promoted"
    assert "400 rows" in decision.reasons[0]


def scores_of(low: float, high: float, valid: float = 1.0, chance: tuple[float, float] | None = (16, 20)) -> Any:
    final = {**SCORES["final"], "overall": (low + high) / 2, "intervals": {"overall": [low, high]}, "valid": valid}
    few = {"intervals": {"overall": list(chance) if chance else None}}
    return {**SCORES, "chance": SCORES["chance"] | few, "final": final | ({} if chance else few)}


@pytest.mark.parametrize("old", [None, evaluated(0.1)], ids=["first", "later"])
@pytest.mark.parametrize(
    ("scores", "config", "reason"),
    [
        (scores_of(20.1, 22), {}, ""),
        (scores_of(20, 22), {}, "overall 21.0 [20.0, 22.0] is not shown to be above chance, 18.0 [16.0, 20.0]"),
        (scores_of(0, 0), {}, "overall 0.0 [0.0, 0.0] is not shown to be above chance, 18.0 [16.0, 20.0]"),
        (scores_of(60, 62, chance=None), {}, "overall 61.0 [too few groups] is not shown to be above chance"),
        (scores_of(60, 62), {"min_overall": 60}, ""),
        (scores_of(59, 62), {"min_overall": 60}, "overall 60.5 [59.0, 62.0] is not shown to reach"),
        (scores_of(60, 62, chance=None), {"min_overall": 60}, "overall 61.0 [too few groups] is not shown to reach"),
        (scores_of(1, 2), {"min_overall": 0}, ""),
        (scores_of(1, 2, chance=None), {"min_overall": 0}, ""),
        (scores_of(60, 62, valid=0.83), {}, ""),
        (scores_of(60, 62, valid=0.81), {}, "81.0% of the answers are valid, fewer than the 82.0% wanted"),
        (scores_of(60, 62, valid=0.95), {"min_valid": 0.96}, "95.0% of the answers are valid"),
        (scores_of(60, 62, valid=0.0), {"min_valid": 0}, ""),
    ],
)
def test_model_below_the_floor_is_rejected_even_where_no_champion_or_a_worse_one_is_there(
    scores: Any, config: Any, reason: str, old: pa.Table | None
) -> None:
    decision = judged(evaluated(0.7), old, scores, **config)
    assert decision.verdict == ("rejected" if reason else "promoted")
    if reason:
        assert len(decision.reasons) == 1
        assert decision.reasons[0].startswith(reason)


@pytest.mark.parametrize("rows", [100, 400, 1500])
def test_guessing_is_never_promoted(rows: int) -> None:
    generator = np.random.default_rng(rows)
    for seed in range(20):
        truths = [SUBSETS[pick] for pick in generator.integers(16, size=rows)]
        guesses = [SUBSETS[pick] for pick in generator.integers(16, size=rows)]
        aspects, groups = [ASPECTS[row % 4] for row in range(rows)], [str(row // 2) for row in range(rows)]
        credit = [dpa(guess, truth, DEFAULT_KIND) for guess, truth in zip(guesses, truths, strict=True)]
        exact = [guess == truth for guess, truth in zip(guesses, truths, strict=True)]
        final = score(aspects, credit, exact, groups, 500, seed) | {"valid": 1.0}
        level = chance(truths, aspects, groups, DEFAULT_KIND, 500, seed)
        assert judged(evaluated(), None, {"chance": level, "final": final}).verdict == "rejected"


@pytest.mark.parametrize("exact", [0.7, 0.9])
def test_equal_or_better_model_is_promoted_with_the_difference(exact: float) -> None:
    decision = judged(evaluated(exact), evaluated(0.7))
    assert decision.verdict == "promoted"
    assert decision.differences is not None
    assert decision.differences["paired"]
    assert decision.differences["samples"] == 400
    assert decision.differences["groups"] == 100
    assert decision.differences["overall"]["low"] >= 0
    assert "against champion m:1 on 400 shared samples in 100 groups" in decision.reasons[0]


def test_model_worse_overall_is_rejected_with_numbers() -> None:
    decision = judged(evaluated(0.6), evaluated(0.7))
    assert decision.verdict == "rejected"
    assert decision.reasons[0].startswith("overall -")
    assert "significantly worse" in decision.reasons[0]


def test_gain_elsewhere_does_not_buy_one_aspect_worse() -> None:
    better = dict.fromkeys(ASPECTS, 0.9)
    decision = judged(evaluated({**better, ASPECTS[1]: 0.4}), evaluated(0.7))
    assert decision.verdict == "rejected"
    assert [reason.split(" -")[0] for reason in decision.reasons] == ["physical shadow"]


def test_par_retrains_with_another_seed_are_rarely_rejected() -> None:
    verdicts = [
        judged(evaluated(0.7, draw=draw, luck=0.4), evaluated(0.7, draw=draw), resamples=200).verdict
        for draw in range(40)
    ]
    assert verdicts.count("rejected") <= 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("path", ["overall", "exact_match", "intervals"])
def test_metric_that_is_not_finite_holds_even_the_first_model(value: float, path: str) -> None:
    final = {**SCORES["final"], "by_aspect": {ASPECTS[0]: None}}
    final[path] = {"overall": [value, 2.0]} if path == "intervals" else value
    decision = judged(evaluated(), None, {**SCORES, "final": final})
    assert decision.verdict == "rejected"
    assert f"final.{path}" in decision.reasons[0]


def test_scores_without_the_models_own_hold() -> None:
    missing = ("final.overall", "final.exact_match", "final.valid", "chance.overall")
    assert judged(evaluated(), None, {"final": {"overall": None}}).reasons == [
        f"scores: {name} is missing" for name in missing
    ]


@pytest.mark.parametrize("rows", [0, 96])
def test_too_few_rows_hold(rows: int) -> None:
    decision = judged(evaluated(rows=rows), evaluated())
    assert decision == Decision("rejected", [f"{rows} evaluation rows, fewer than the 100 wanted"])


def test_row_without_a_score_holds() -> None:
    table = evaluated()
    dpa = table["dpa"].to_pylist()
    dpa[3:5] = [math.nan, None]
    table = table.set_column(table.column_names.index("dpa"), "dpa", pa.array(dpa, pa.float64()))
    assert judged(table, evaluated()).reasons == ["2 of 400 evaluation rows carry no score from 0 to 1"]


def test_new_data_is_compared_unpaired_and_says_so() -> None:
    par = judged(evaluated(0.7, draw=1, prefix="t"), evaluated(0.7))
    assert par.verdict == "promoted"
    assert "400 other samples" in par.reasons[0]
    assert par.differences is not None
    assert not par.differences["paired"]
    assert judged(evaluated(0.5, draw=1, prefix="t"), evaluated(0.7)).verdict == "rejected"


def test_unpaired_interval_is_as_wide_as_drawing_both_tables_again() -> None:
    new, old = evaluated(0.7, draw=1, prefix="t"), evaluated(0.6)
    found = judged(new, old, resamples=4000).differences
    assert found is not None
    generator = np.random.default_rng(5)
    sums = [np.array(table["dpa"]).reshape(100, 4) for table in (old, new)]
    means = [sum_[generator.integers(100, size=(4000, 100))].mean(axis=(1, 2)) for sum_ in sums]
    low, high = np.quantile(100 * (means[1] - means[0]), [0.025, 0.975])
    assert found["overall"]["low"] == pytest.approx(low, abs=0.8)
    assert found["overall"]["high"] == pytest.approx(high, abs=0.8)


def test_only_samples_with_the_same_truth_are_paired() -> None:
    relabelled = evaluated(0.7)
    truth = pa.array([["B"] if row < 200 else ["A"] for row in range(400)], pa.list_(pa.string()))
    relabelled = relabelled.set_column(relabelled.column_names.index("truth"), "truth", truth)
    found = judged(relabelled, evaluated(0.7)).differences
    assert found is not None
    assert (found["paired"], found["samples"]) == (True, 200)


def test_aspect_that_is_no_longer_judged_holds() -> None:
    table = evaluated()
    without = table.filter(pc.not_equal(table["aspect"], ASPECTS[2]))
    decision = judged(without, table)
    assert decision.verdict == "rejected"
    assert decision.reasons == ["placement layout: no rows, while champion m:1 was judged on it"]


def few_groups(table: pa.Table, groups: int, *aspects: str) -> pa.Table:
    """The table with the rows of some aspects in few groups."""
    old = zip(table["group"].to_pylist(), table["aspect"].to_pylist(), range(table.num_rows), strict=True)
    new = [f"few {row // 4 % groups}" if aspect in aspects else group for group, aspect, row in old]
    return table.set_column(table.column_names.index("group"), "group", pa.array(new))


def one_more_wrong(table: pa.Table, aspect: str) -> pa.Table:
    right = [index for index, row in enumerate(table.to_pylist()) if row["aspect"] == aspect and row["exact"]]
    for name, wrong in (("dpa", 0.0), ("exact", False)):
        values = table[name].to_pylist()
        values[right[0]] = wrong
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


@pytest.mark.parametrize("prefix", ["s", "t"])
@pytest.mark.parametrize("groups", [1, 29])
def test_aspect_in_few_groups_is_never_significantly_worse(groups: int, prefix: str) -> None:
    """One group gives an interval of no width: one more wrong row in 100 read as "significantly worse"."""
    before = few_groups(evaluated(0.7), groups, ASPECTS[1])
    after = few_groups(one_more_wrong(evaluated(0.7, prefix=prefix), ASPECTS[1]), groups, ASPECTS[1])
    decision = judged(after, before)
    assert decision.verdict == "promoted"
    assert decision.differences is not None
    shadow = decision.differences["by_aspect"][ASPECTS[1]]
    assert shadow == {"value": pytest.approx(-1), "low": None, "high": None}
    samples = f"400 {'shared' if prefix == 's' else 'other'} samples"
    unknown = "fewer than 30 groups are too few to judge"
    judgeable = groups == 29  # of overall, in which the aspect's groups have a quarter of the weight
    assert f"on {samples} in" in decision.reasons[0]
    assert f"no aspect significantly worse; {unknown}" in decision.reasons[0]
    assert decision.reasons[0].endswith("judge physical shadow" if judgeable else "judge overall, physical shadow")


def test_evaluation_of_one_group_says_that_nothing_can_be_judged() -> None:
    before, after = (few_groups(evaluated(share), 1, *ASPECTS) for share in (0.7, 0.6))
    decision = judged(after, before)
    assert decision.verdict == "promoted"
    assert decision.reasons[0].startswith("overall -")
    assert "[too few groups] against champion m:1 on 400 shared samples in 1 groups" in decision.reasons[0]


@pytest.mark.parametrize(
    ("drift", "verdict"),
    [
        (alarm("partial credit"), "rejected"),
        (alarm("invalid answers"), "rejected"),
        (alarm("exact match", drifted=False), "promoted"),
        (alarm("aspect mix"), "promoted"),
    ],
)
def test_only_an_alarm_that_says_worse_holds(drift: dict[str, Any], verdict: str) -> None:
    decision = judged(evaluated(), evaluated(), drift=drift)
    assert decision.verdict == verdict
    if verdict == "rejected":
        assert decision.reasons == [f"drift: {drift['tests'][0]['name']} went from 0.700 to 0.500 (p = 0.0001)"]


def test_same_inputs_give_the_same_decision() -> None:
    new, old = evaluated(0.68, luck=0.2), evaluated(0.7)
    assert judged(new, old) == judged(new, old)
