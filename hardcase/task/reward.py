"""Dynamic Proportional Accuracy: partial credit for a set of letters, and the reward functions TRL calls.

arXiv 2511.10055 names DPA; its formula is not public to us. These definitions are our reading, the default was chosen
by the measurements in `docs/decisions/0001-dpa.md`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from hardcase.errors import InputError
from hardcase.task.answer import parse_answer

if TYPE_CHECKING:  # the configuration may name the default below, so it is not imported when this runs
    from hardcase.config import RewardKind

Letters = frozenset[str]

# Only for a wrong answer that names letters where letters are the truth; `dpa` decides the rest for all definitions.
PARTIAL: Final[dict["RewardKind", Callable[[Letters, Letters], float]]] = {
    "exact": lambda predicted, truth: 0.0,
    "subset": lambda predicted, truth: len(predicted) / len(truth) if predicted < truth else 0.0,
    "penalised": lambda predicted, truth: max(0.0, (len(predicted & truth) - len(predicted - truth)) / len(truth)),
    "jaccard": lambda predicted, truth: len(predicted & truth) / len(predicted | truth),
}
KINDS: Final = tuple(PARTIAL)
DEFAULT_KIND: Final = "penalised"


def dpa(
    predicted: Collection[str] | None, truth: Collection[str], kind: "RewardKind" = DEFAULT_KIND, worth: float = 1.0
) -> float:
    """Return the partial credit of an answer, in [0, 1], and 1.0 if and only if it is the truth.

    An empty set on either side has no proportion: `none` is worth 1.0 where it is the truth and 0.0 elsewhere, and
    letters are worth nothing where `none` is the truth.

    Args:
        predicted: the letters answered, empty for `none`; None for an invalid text, worth 0.0.
        truth: the letters that show the flaw.
        kind: `exact` gives no partial credit; `subset` |P|/|T| while nothing wrong is named; `penalised` takes one
            share of |T| off for each wrong letter; `jaccard` |P∩T|/|P∪T|.
        worth: factor of what a wrong answer earns; 0 makes every kind `exact`.

    Raises:
        InputError: no such kind.
    """
    if not isinstance(kind, str) or kind not in PARTIAL:
        raise InputError(f"reward kind {kind!r}: not known; name one of {', '.join(KINDS)}")
    if predicted is None:
        return 0.0
    answered, flawed = frozenset(predicted), frozenset(truth)
    if answered == flawed:
        return 1.0
    if not answered or not flawed:
        return 0.0
    return worth * PARTIAL[kind](answered, flawed)


def extract_text(completion: Any) -> str | None:
    """Return the text of a completion of TRL's, a text or one message of text parts; None for anything else."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")
        if isinstance(completion, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in completion]
            texts = [part for part in parts if isinstance(part, str)]
            completion = "".join(texts) if len(texts) == len(parts) else None
    return completion if isinstance(completion, str) else None


def dpa_reward(
    completions: Sequence[Any],
    answer: Sequence[Collection[str]],
    kind: "RewardKind" = DEFAULT_KIND,
    worth: float = 1.0,
    **kwargs: Any,
) -> list[float]:
    """Return the partial credit of each completion, 0.0 where it is invalid: a reward function for TRL.

    Another definition is bound by `functools.partial(dpa_reward, kind=…)`, which TRL logs under this name.

    Args:
        completions: texts, or conversational completions.
        answer: the true letters of each completion's sample (a column of the data set).
        kind: the definition of partial credit.
        worth: factor of partial credit.
        **kwargs: the data set's other columns and the trainer's own arguments, unused.

    Raises:
        InputError: no such kind.
        ValueError: not one answer for each completion.
    """
    return [
        dpa(parse_answer(extract_text(completion)), truth, kind, worth)
        for completion, truth in zip(completions, answer, strict=True)
    ]


def format_reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    """Return 1.0 for each completion that follows the answer grammar, else 0.0: a reward function for TRL.

    Args:
        completions: texts, or conversational completions.
        **kwargs: the data set's columns and the trainer's own arguments, unused.
    """
    return [float(parse_answer(extract_text(completion)) is not None) for completion in completions]
