"""Confidence and abstention: what is promised holds on other groups, and what cannot be promised is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from hardcase.stats.calibration import calibrate, judge, list_refusals
from hardcase.task.order import turn_back
from hardcase.task.sample import ASPECTS, LETTERS

ORDERS = 4
Drawn = tuple[list[dict[str, Any]], list[list[frozenset[str] | None]]]


def draw(rows: int, skill: Mapping[str, float], seed: int) -> Drawn:
    """Draw labels and answers: a candidate has a difficulty, on which each order errs anew.

    `skill` is by aspect how much more often an order is right on an easy candidate than on a hard one.
    """
    rng = np.random.default_rng(seed)
    labels, answers = [], []
    for row in range(rows):
        aspect = ASPECTS[row % 4]
        truth = frozenset(letter for letter in LETTERS if rng.random() < 0.45)
        right = 1 - 0.5 * rng.random(4) ** skill[aspect]
        by_order = []
        for order in range(ORDERS):
            errs = rng.random(4) > right
            said = frozenset(letter for letter, wrong in zip(LETTERS, errs, strict=True) if (letter in truth) != wrong)
            by_order.append(turn_back(said, -order % ORDERS))
        labels.append({"aspect": aspect, "group": f"g{row // 4}", "answer": sorted(truth)})
        answers.append(by_order)
    return labels, answers


def calibrated(drawn: Drawn, precision: float = 0.95) -> dict[str, Any]:
    return calibrate(*drawn, precision=precision, assurance=0.9, resamples=200, seed=0)


def precision_of(calibration: Mapping[str, Any], drawn: Drawn, aspect: str) -> float:
    """Return the share of right flags among the answers that stand."""
    flags, right = 0, 0
    for label, answers in zip(*drawn, strict=True):
        judged = judge(calibration, aspect, answers) if label["aspect"] == aspect else None
        if judged and not judged.abstained and judged.answer is not None:
            flags += len(judged.answer)
            right += len(judged.answer & set(label["answer"]))
    return right / flags if flags else 1.0


SKILLED: Mapping[str, float] = dict.fromkeys(ASPECTS, 4.0)


def test_promise_holds_on_groups_that_no_threshold_was_chosen_on() -> None:
    """Of 60 calibrations at most a tenth, and what chance allows beyond, miss the promise."""
    later = draw(8000, SKILLED, 10_000)
    missed = 0
    for seed in range(15):
        calibration = calibrated(draw(1200, SKILLED, seed))
        missed += sum(precision_of(calibration, later, aspect) < 0.95 for aspect in ASPECTS)
    assert missed <= 10


def test_abstention_raises_precision_and_exact_match() -> None:
    drawn = draw(4000, SKILLED, 1)
    calibration = calibrated(drawn)
    for own in calibration["aspects"].values():
        assert 0.2 < own["coverage"]["value"] < 1
        assert own["precision"]["value"] > 0.94
    exact = np.mean([label["answer"] == sorted(row[0] or ()) for label, row in zip(*drawn, strict=True)])
    assert all(own["exact_match"]["value"] > exact for own in calibration["aspects"].values())


def test_aspect_without_a_threshold_is_refused_in_words_and_its_flags_are_abstained_from() -> None:
    guessing = {**SKILLED, ASPECTS[1]: 0.0}  # right half of the time
    calibration = calibrated(draw(4000, guessing, 2))
    assert calibration["aspects"][ASPECTS[1]]["flag_at"] is None
    (refusal,) = list_refusals(calibration)
    assert refusal.startswith("physical shadow: no threshold reaches a precision of 0.95: of the ")
    flagged = judge(calibration, ASPECTS[1], [frozenset("A"), frozenset("D"), frozenset("C"), frozenset("B")])
    assert flagged.abstained is True
    clear = judge(calibration, ASPECTS[1], [frozenset()] * 4)
    assert clear.abstained is False


def test_confidence_is_the_share_of_exact_answers() -> None:
    calibration = calibrated(draw(4000, SKILLED, 3))
    labels, answers = draw(4000, SKILLED, 4)
    judged = [judge(calibration, label["aspect"], row) for label, row in zip(labels, answers, strict=True)]
    stated = np.array([each.confidence for each in judged])
    exact = np.array([each.answer == set(label["answer"]) for each, label in zip(judged, labels, strict=True)])
    for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1.01)):
        own = (stated >= low) & (stated < high)
        assert own.sum() > 50
        assert abs(stated[own].mean() - exact[own].mean()) < 0.06
    scores = np.array([[each.scores[letter] for letter in LETTERS] for each in judged if each.scores])
    flawed = np.array([[letter in label["answer"] for letter in LETTERS] for label in labels])
    assert abs(scores.mean() - flawed.mean()) < 0.02


@pytest.mark.parametrize("answers", [[None, frozenset("A"), frozenset(), None], [None] * 4])
def test_invalid_answer_is_abstained_from_without_confidence(answers: Sequence[frozenset[str] | None]) -> None:
    judged = judge(calibrated(draw(400, SKILLED, 5)), ASPECTS[0], answers)
    assert (judged.answer, judged.confidence, judged.abstained) == (None, 0.0, True)


def test_majority_against_the_first_order_is_abstained_from() -> None:
    calibration = calibrated(draw(1200, SKILLED, 6))
    others = [turn_back(frozenset("B"), -order % ORDERS) for order in range(1, ORDERS)]
    assert judge(calibration, ASPECTS[0], [frozenset(), *others]).abstained is True


def test_without_a_calibration_nothing_is_claimed() -> None:
    judged = judge(None, ASPECTS[0], [frozenset("AC")])
    assert judged == (frozenset("AC"), None, None, None)


def test_same_answers_give_the_same_calibration_and_nothing_is_flagged_by_a_silent_model() -> None:
    drawn = draw(400, SKILLED, 7)
    assert calibrated(drawn) == calibrated(drawn)
    silent = calibrated((drawn[0], [[frozenset()] * ORDERS for _ in drawn[0]]))
    assert len(list_refusals(silent)) == 4
    assert silent["aspects"][ASPECTS[0]]["precision"] == {"value": None, "interval": None}
