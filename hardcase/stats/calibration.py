"""How certain an answer is, and when to abstain from one: calibrated on one half of the groups, reported on the other.

The model answers each question in several orders of the candidates. The answer is that of the first order. Its
*agreement* is the least share of orders that flag one of its letters. An answer without letters has none. The threshold
of an aspect is the least agreement at which the flags have the promised precision: the share of flagged candidates that
do show the flaw. It is found by Learn then Test (arXiv 2110.01052) with MAPIE, which holds the promise with the stated
assurance for independent samples. Samples of a group are not independent, so the report is on groups that the threshold
was not chosen on, with intervals over groups (docs/decisions/0020).
"""

import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hardcase.data.snapshot import is_held_out
from hardcase.task.order import share_flags
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import ASPECTS, LETTERS

FORMAT: Final = 1
MAJORITY: Final = 0.5
Answers = Sequence[AbstractSet[str] | None]
Array = npt.NDArray[np.float64]


class Judgement(NamedTuple):
    """An answer with how certain it is.

    `answer` is None where the text of the first order is invalid. `scores` holds for each letter the calibrated
    probability of a flaw, `confidence` that the answer is exactly right. Both are None without a calibration, and so is
    `abstained`.
    """

    answer: frozenset[str] | None
    scores: dict[str, float] | None
    confidence: float | None
    abstained: bool | None


@dataclass(frozen=True)
class Case:
    """A sample with its truth, the answer of the first order, and by letter the share of orders that flag it."""

    aspect: str
    group: str
    truth: frozenset[str]
    answer: frozenset[str] | None
    shares: Mapping[str, float]

    @property
    def agreement(self) -> float:
        """Least share of orders that flag a letter of the answer."""
        return min((self.shares[letter] for letter in self.answer or ()), default=1.0)

    @property
    def certainty(self) -> float:
        """Product over the letters of the share of orders that agree with the answer on it."""
        flagged = self.answer or frozenset()
        return float(np.prod([share if letter in flagged else 1 - share for letter, share in self.shares.items()]))

    def is_answered(self, flag_at: float | None) -> bool:
        """Return whether the answer stands: its flags reach the threshold, and no majority flags another letter."""
        if self.answer is None or any(self.shares[letter] >= MAJORITY for letter in set(LETTERS) - self.answer):
            return False
        return not self.answer or (flag_at is not None and self.agreement >= flag_at)


def calibrate(
    labels: Sequence[Mapping[str, Any]],
    answers: Sequence[Answers],
    *,
    precision: float,
    assurance: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return a calibration as JSON. docs/reference/formats.md says its fields.

    Args:
        labels: `aspect`, `group` and `answer` (the truth) of each sample.
        answers: of each sample, its answers in several orders, each in the letters of its own order.
        precision: promised share of right flags, 0 to 1.
        assurance: probability, over draws of the calibration half, that the promise holds.
        resamples: bootstrap resamples over groups, for the intervals of the report.
        seed: of the bootstrap.
    """
    cases = [
        Case(label["aspect"], label["group"], frozenset(label["answer"]), _first(answer), share_flags(answer))
        for label, answer in zip(labels, answers, strict=True)
    ]
    chosen_on = [case for case in cases if is_held_out(f"calibrate {case.group}", 0.5)]
    reported_on = [case for case in cases if not is_held_out(f"calibrate {case.group}", 0.5)]
    aspects = dict[str, Any]()
    for aspect in ASPECTS:
        flag_at, reason = _find_threshold([case for case in chosen_on if case.aspect == aspect], precision, assurance)
        own = [case for case in reported_on if case.aspect == aspect]
        aspects[aspect] = {"flag_at": flag_at, "reason": reason, **_measure(own, flag_at, resamples, seed)}
    letters = [(case.shares[letter], letter in case.truth) for case in chosen_on for letter in LETTERS]
    exact = [(case.certainty, case.answer == case.truth) for case in chosen_on if case.answer is not None]
    return {
        "format": FORMAT,
        "orders": len(answers[0]) if answers else 0,
        "precision": precision,
        "assurance": assurance,
        "aspects": aspects,
        "letters": _fit(letters),
        "answers": _fit(exact),
    }


def _find_threshold(cases: Sequence[Case], precision: float, assurance: float) -> tuple[float | None, str]:
    """Return the least agreement at which flags have the precision, or None and why there is none."""
    flags = [(case.agreement, letter in case.truth) for case in cases for letter in case.answer or ()]
    what = f"no threshold reaches a precision of {precision:g}"
    if not flags:
        return None, f"{what}: nothing was flagged"
    agreements, right = np.array(flags, dtype=np.float64).T
    levels = np.unique(agreements)[::-1]
    from mapie.risk_control import BinaryClassificationController  # it imports scikit-learn

    controller = BinaryClassificationController(
        lambda values: np.column_stack([1 - values[:, 0], values[:, 0]]),
        risk="precision",
        target_level=precision,
        confidence_level=assurance,
        list_predict_params=levels,
        fwer_method="fixed_sequence",  # from the highest level down, which tests each at the full assurance
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there may be no threshold
        controller.calibrate(agreements[:, None], right.astype(int))
    if len(controller.valid_predict_params):
        return float(min(controller.valid_predict_params)), ""
    certain = right[agreements == levels[0]]
    rest = f"{certain.mean():.3f} are right, which does not show it with a probability of {assurance:g}"
    return None, f"{what}: of the {len(certain)} most certain flags {rest}"


def _measure(cases: Sequence[Case], flag_at: float | None, resamples: int, seed: int) -> dict[str, Any]:
    """Return what a threshold does to samples that it was not chosen on."""
    answered = np.array([case.is_answered(flag_at) for case in cases], dtype=bool)
    flags = np.array([len(case.answer or ()) for case in cases], dtype=np.float64)
    right = np.array([len((case.answer or frozenset()) & case.truth) for case in cases], dtype=np.float64)
    exact = np.array([case.answer == case.truth for case in cases], dtype=np.float64)
    groups = [case.group for case in cases]

    def measure(part: Array, of: Array) -> dict[str, Any]:
        return _measure_ratio(part, of, groups, resamples, seed)

    return {
        "samples": len(cases),
        "coverage": measure(answered.astype(np.float64), np.ones(len(cases))),
        "precision": measure(right * answered, flags * answered),
        "kept_flags": measure(flags * answered, flags),
        "exact_match": measure(exact * answered, answered.astype(np.float64)),
    }


def _measure_ratio(part: Array, of: Array, groups: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Return a ratio of sums with its 95% interval over groups; None for a ratio of nothing."""
    if not of.sum():
        return {"value": None, "interval": None}
    _, numbers = np.unique(groups, return_inverse=True)
    sums = np.array([np.bincount(numbers, weights=values) for values in (part, of)])
    count = sums.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    parts, wholes = sums @ draws.T
    low, high = np.quantile(parts[wholes > 0] / wholes[wholes > 0], [0.025, 0.975])
    return {"value": float(part.sum() / of.sum()), "interval": [float(low), float(high)]}


def _fit(pairs: Sequence[tuple[float, bool]]) -> dict[str, list[float]]:
    """Return the nodes of the isotonic regression of what is right on a score."""
    from sklearn.isotonic import IsotonicRegression

    if not pairs:
        return {"score": [0.0, 1.0], "probability": [0.0, 0.0]}
    scores, right = np.array(pairs, dtype=np.float64).T
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, right)
    return {"score": fitted.X_thresholds_.tolist(), "probability": fitted.y_thresholds_.tolist()}


def judge(calibration: Mapping[str, Any] | None, aspect: str, answers: Answers) -> Judgement:
    """Return the answer of the first order with how certain it is, by a calibration or None."""
    answer = _first(answers)
    if calibration is None:
        return Judgement(answer, None, None, None)
    case = Case(aspect, "", frozenset(), answer, share_flags(answers))
    letters, exact = calibration["letters"], calibration["answers"]
    scores = {
        letter: float(np.interp(share, letters["score"], letters["probability"]))
        for letter, share in case.shares.items()
    }
    confidence = 0.0 if answer is None else float(np.interp(case.certainty, exact["score"], exact["probability"]))
    return Judgement(answer, scores, confidence, not case.is_answered(calibration["aspects"][aspect]["flag_at"]))


def _first(answers: Answers) -> frozenset[str] | None:
    return None if answers[0] is None else frozenset(answers[0])


def list_refusals(calibration: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each aspect without a threshold."""
    return [
        f"{ASPECT_NAMES[aspect]}: {own['reason']}" for aspect, own in calibration["aspects"].items() if own["reason"]
    ]
