"""Scores against hand-computed tables; intervals against what they promise."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardcase.errors import HardcaseError
from hardcase.task.reward import KINDS
from hardcase.task.sample import ASPECTS
from hardcase.task.score import SUBSETS, best_constant, chance, paired_difference, score

DEFORMED, SHADOW, PLACEMENT, EXTENSION = ASPECTS
# Ten samples: means .75, .5, 1, 0.25 by aspect.
TABLE = (
    [DEFORMED, DEFORMED, SHADOW, SHADOW, SHADOW, SHADOW, PLACEMENT, PLACEMENT, EXTENSION, EXTENSION],
    [1.0, 0.5, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.0],
    [True, False, True, True, False, False, True, True, False, False],
    list("abcdeabcde"),
)


def test_best_constant_answer_weights_aspects_equally_as_overall_does() -> None:
    truths = [frozenset[str](), frozenset[str](), frozenset[str](), *[frozenset("B")] * 5]
    aspects = [DEFORMED, SHADOW, PLACEMENT, *[EXTENSION] * 5]
    assert best_constant(truths, aspects, "exact") == {"answer": "none", "overall": 75.0}
    assert best_constant(truths[3:], aspects[3:], "exact") == {"answer": "B", "overall": 100.0}


def test_scores_of_a_hand_computed_table() -> None:
    result = score(*TABLE, resamples=200, seed=0)
    assert result["by_aspect"] == {DEFORMED: 75.0, SHADOW: 50.0, PLACEMENT: 100.0, EXTENSION: 25.0}
    assert result["overall"] == 62.5, "the mean of the four aspects, not of the ten samples"
    assert result["exact_match"] == 0.5
    assert result["intervals"].keys() == {"overall", "exact_match", "by_aspect"}
    assert result["intervals"]["by_aspect"][PLACEMENT] is None, "five groups"


def test_an_aspect_without_samples_is_null_and_left_out_of_overall() -> None:
    groups = [str(number) for number in range(90)]
    result = score([SHADOW, SHADOW, EXTENSION] * 30, [1.0, 0.0, 1.0] * 30, [1, 0, 1] * 30, groups, 200, 0)
    assert result["by_aspect"] == {DEFORMED: None, SHADOW: 50.0, PLACEMENT: None, EXTENSION: 100.0}
    assert result["overall"] == 75.0
    assert result["intervals"]["by_aspect"][DEFORMED] is None
    assert result["intervals"]["by_aspect"][EXTENSION] == [100.0, 100.0]
    json.dumps(result, allow_nan=False)


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_intervals() -> None:
    aspects, credit, groups = clustered(np.random.default_rng(0))
    first, again, other = (json.dumps(score(aspects, credit, credit, groups, 300, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_intervals_do_not_depend_on_how_resamples_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(*TABLE, resamples=300, seed=1)
    monkeypatch.setattr("hardcase.task.score.CELLS", 35)
    assert score(*TABLE, resamples=300, seed=1) == whole


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(random: Any) -> None:
    rows = list(zip(*TABLE, strict=True))
    random.shuffle(rows)
    shuffled: Any = [list(column) for column in zip(*rows, strict=True)]
    assert score(*shuffled, resamples=100, seed=0) == score(*TABLE, resamples=100, seed=0)


def test_samples_of_one_original_count_as_one_when_they_agree() -> None:
    generator = np.random.default_rng(0)
    verdicts = generator.random(50) < 0.6
    credit = np.repeat(verdicts, 8).astype(float)
    aspects = [SHADOW] * 400
    apart = score(aspects, credit, credit, [str(number) for number in range(400)], 1000, 0)
    together = score(aspects, credit, credit, [str(number // 8) for number in range(400)], 1000, 0)
    width = [high - low for low, high in (apart["intervals"]["overall"], together["intervals"]["overall"])]
    assert width[1] == pytest.approx(8**0.5 * width[0], rel=0.15)
    assert apart["overall"] == together["overall"]


@pytest.mark.parametrize(("groups", "known"), [(1, False), (29, False), (30, True)])
def test_fewer_groups_than_thirty_are_scored_without_an_interval(groups: int, known: bool) -> None:
    """Intervals of few groups are too narrow, those of one group have no width at all."""
    members = [str(number % groups) for number in range(120)]
    result = score([SHADOW] * 120, [1.0, 0.0] * 60, [1, 0] * 60, members, 100, 0)
    assert result["overall"] == 50.0
    for interval in (*(result["intervals"][name] for name in ("overall", "exact_match")), _shadow(result)):
        assert (interval is not None) is known


def test_best_constant_answer_is_that_of_the_most_frequent_truth_over_aspects_not_samples() -> None:
    truths = [frozenset[str]()] * 3 + [frozenset("B")] * 5
    aspects = [ASPECTS[0], ASPECTS[1], ASPECTS[2], *[ASPECTS[3]] * 5]
    assert best_constant(truths, aspects, "exact") == {"answer": "none", "overall": 75.0}


def _shadow(result: Any) -> Any:
    return result["intervals"]["by_aspect"][SHADOW]


def test_overall_has_no_interval_where_one_aspect_lies_in_few_groups() -> None:
    """A quarter of overall would then come from groups whose spread nobody knows."""
    groups = [f"{aspect} {0 if aspect == SHADOW else number}" for number in range(60) for aspect in ASPECTS]
    credit = np.random.default_rng(0).random(240)
    intervals = score(list(ASPECTS) * 60, credit, credit > 0.5, groups, 100, 0)["intervals"]
    assert (intervals["overall"], intervals["by_aspect"][SHADOW]) == (None, None)
    assert intervals["by_aspect"][DEFORMED] is not None
    assert intervals["exact_match"] is not None, "it weights samples, and 180 of 240 have groups of their own"


def test_aspects_too_small_to_judge_leave_overall_its_interval() -> None:
    groups = [str(number) for number in range(100)]
    credit = np.random.default_rng(0).random(100)
    intervals = score(list(ASPECTS) * 25, credit, credit > 0.5, groups, 100, 0)["intervals"]
    assert intervals["by_aspect"] == dict.fromkeys(ASPECTS), "25 groups each"
    assert intervals["overall"] is not None


def test_intervals_of_enough_groups_are_those_of_version_0_1_0() -> None:
    aspects, credit, groups = clustered(np.random.default_rng(0), 130)
    intervals = score(aspects, credit, credit, groups, 500, 0)["intervals"]
    assert intervals["overall"] == [47.66280074036981, 60.11020669985137]
    assert intervals["exact_match"] == [0.4775840293923477, 0.6]
    assert intervals["by_aspect"][SHADOW] == [46.80744958653707, 64.1171875]


def clustered(generator: np.random.Generator, groups: int = 80, lift: float = 0.0) -> tuple[Any, Any, Any]:
    """Aspects, credit of mean 0.5 + lift, and groups of one to six samples that share a level."""
    sizes = generator.integers(1, 7, groups)
    level = np.repeat(generator.uniform(0.1, 0.9, groups), sizes)
    credit = (generator.random(level.size) < level + lift).astype(float)
    aspects = [ASPECTS[pick] for pick in generator.integers(4, size=level.size)]
    return aspects, credit, [str(name) for name in np.repeat(np.arange(groups), sizes)]


def test_intervals_cover_the_true_score_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(200):
        aspects, credit, groups = clustered(np.random.default_rng(seed))
        low, high = score(aspects, credit, credit, groups, 400, seed)["intervals"]["overall"]
        hits += low <= 50 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_gain_is_found_when_it_is_there_and_false_alarms_are_rare() -> None:
    found = alarms = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        aspects, first, groups = clustered(generator, 200)
        better = np.maximum(first, generator.random(first.size) < 0.2)
        equal = np.where(generator.random(first.size) < 0.2, generator.permutation(first), first)
        found += paired_difference((first, first), (better, better), aspects, groups, 400, seed)["overall"]["low"] > 0
        none = paired_difference((first, first), (equal, equal), aspects, groups, 400, seed)["overall"]
        alarms += not none["low"] <= 0 <= none["high"]
    assert found == 100
    assert alarms <= 12


def test_paired_difference_of_a_hand_computed_table() -> None:
    aspects, credit, exact, _ = (list(column) * 30 for column in TABLE)
    groups = [str(number // 10) for number in range(300)]
    after = [*TABLE[1][:8], 1.0, 1.0] * 30
    better = [*TABLE[2][:8], True, True] * 30
    gain = paired_difference((credit, exact), (after, better), aspects, groups, 200, 0)
    assert gain["overall"]["value"] == 18.75
    assert gain["exact_match"]["value"] == pytest.approx(0.2)
    assert gain["by_aspect"][DEFORMED] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert gain["by_aspect"][EXTENSION]["value"] == 75.0
    assert gain["overall"]["low"] <= 18.75 <= gain["overall"]["high"]
    back = paired_difference((after, better), (credit, exact), aspects, groups, 200, 0)
    assert back["overall"]["low"] == pytest.approx(-gain["overall"]["high"])


def test_pairing_is_sharper_than_two_separate_intervals() -> None:
    aspects, first, groups = clustered(np.random.default_rng(3))
    second = first.copy()
    second[np.flatnonzero(first == 0)[::12]] = 1.0
    gain = paired_difference((first, first), (second, second), aspects, groups, 500, 0)["overall"]
    low, high = score(aspects, first, first, groups, 500, 0)["intervals"]["overall"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert gain["high"] - gain["low"] < (high - low) / 2


def test_a_wider_level_gives_wider_bounds_and_missing_aspects_are_null() -> None:
    first, second = ([0.0, 1.0, 0.0, 1.0] * 8,) * 2, ([1.0, 1.0, 0.0, 0.5] * 8,) * 2
    groups = [str(number) for number in range(32)]
    narrow, wide = (paired_difference(first, second, [SHADOW] * 32, groups, 1000, 0, level) for level in (0.5, 0.99))
    assert wide["overall"]["low"] < narrow["overall"]["low"] <= narrow["overall"]["high"] < wide["overall"]["high"]
    assert narrow["by_aspect"][DEFORMED] is None


@pytest.mark.parametrize("kind", KINDS)
def test_chance_is_what_very_many_random_answers_would_earn(kind: Any) -> None:
    truths = [truth for truth in SUBSETS for _ in range(4)]
    aspects, groups = list(ASPECTS) * 16, [str(number) for number in range(64)]
    level = chance(truths, aspects, groups, kind, 100, 0)
    expected = {"exact": 1 / 16, "subset": 0.160156, "penalised": 0.209635, "jaccard": 0.335938}[kind]
    assert level["overall"] == pytest.approx(100 * expected, abs=1e-3)
    assert level["exact_match"] == 1 / 16
    assert level["intervals"]["exact_match"] == pytest.approx([1 / 16, 1 / 16])


def test_chance_follows_the_truths_of_each_aspect() -> None:
    level = chance([[], ["A", "B"]], [SHADOW, EXTENSION], ["a", "b"], "subset", 100, 0)
    assert level["by_aspect"][SHADOW] == 100 / 16
    assert level["by_aspect"][EXTENSION] == 100 * (1 + 2 * 0.5) / 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (([], [], [], []), "at least one"),
        (([SHADOW], [1.0, 0.0], [1], ["a"]), "equally many"),
        (([SHADOW], [1.0], [1], ["a", "b"]), "equally many"),
        ((["shadow"], [1.0], [1], ["a"]), "'shadow' is not known"),
        (([SHADOW], [float("nan")], [1], ["a"]), "not finite"),
    ],
)
def test_a_broken_table_is_refused_with_its_cause(change: Any, message: str) -> None:
    with pytest.raises(HardcaseError, match=message):
        score(*change, resamples=100, seed=0)


def test_models_that_answered_different_samples_are_not_compared() -> None:
    with pytest.raises(HardcaseError, match="equally many"):
        paired_difference(([1.0], [1]), ([1.0, 0.0], [1, 0]), [SHADOW], ["a"], 100, 0)
