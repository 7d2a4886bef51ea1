"""The answer grammar: which texts of a model count, and what they say.

Training optimises whatever this accepts, so anything outside the grammar is None: no tag is searched for, no text is
repaired. The form `<think>…</think><answer>…</answer>` is that of arXiv 2511.10055; the grammar is ours:

    text   = ws "<think>" body "</think>" ws "<answer>" ws ( "none" | letter { sep letter } ) ws "</answer>" ws
    letter = "A" | "B" | "C" | "D"      each at most once, any order
    sep    = nothing, or spaces and at most one comma
    ws     = spaces, tabs, newlines
"""

import re
import unicodedata
from collections.abc import Set as AbstractSet
from typing import Final

from hardcase.task.sample import LETTERS

MAX_CHARACTERS: Final = 16_384
NONE: Final = "none"
WS: Final = " \t\n"
THINK, THINK_END, ANSWER, ANSWER_END = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Possessive, and the comma inside its own group: a long run of spaces is read once.
CHOICE: Final = re.compile(r"none|[A-D](?: *+(?:, *+)?[A-D]){0,3}")
# Letters and symbols to Unicode, blank to the eye: Hangul fillers, the empty Braille cell, a null note head.
BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\U0001d159")


def has_visible(text: str) -> bool:
    """Whether `text` holds a letter, number, mark of punctuation or symbol that leaves ink."""
    return any(unicodedata.category(character)[0] in "LNPS" and character not in BLANK for character in text)


def parse_answer(text: object) -> frozenset[str] | None:
    """Read the letters that `text` flags, exactly by the grammar, in linear time.

    Args:
        text: what a model wrote; anything that is not a `str` is invalid.

    Returns:
        The flagged letters, empty for `none`, or None when the text is invalid. Never raises.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    opening, closing, rest = text.strip(WS).partition(THINK_END)
    body, answer = opening.removeprefix(THINK), rest.strip(WS)
    if not closing or body == opening or not answer.startswith(ANSWER) or not answer.endswith(ANSWER_END):
        return None
    if any(tag in body for tag in TAGS) or not has_visible(body):
        return None
    choice = answer.removeprefix(ANSWER).removesuffix(ANSWER_END).strip(WS)
    if not CHOICE.fullmatch(choice):
        return None
    letters = [character for character in choice if character in LETTERS]
    return frozenset(letters) if len(set(letters)) == len(letters) else None


def format_answer(truth: AbstractSet[str]) -> str:
    """Return an answer as we write it: the letters in order, `AC`, or `none`."""
    return "".join(letter for letter in LETTERS if letter in truth) or NONE
