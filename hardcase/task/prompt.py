"""The question a model is asked and the text it shall write; five images, then the aspect (arXiv 2511.10055).

Few, plain, lower-case words: the tokenizer of a model built from nothing is word-level and learns each of them.
"""

from collections.abc import Set as AbstractSet
from typing import Any, Final

from hardcase.task.answer import ANSWER, ANSWER_END, THINK, THINK_END, format_answer
from hardcase.task.sample import ASPECTS, LETTERS

ASPECT_NAMES: Final = {aspect: aspect.replace("_", " ") for aspect in ASPECTS}


def format_question(aspect: str) -> str:
    """Return the question about one of `ASPECTS`."""
    return f"which images show a problem in {ASPECT_NAMES[aspect]} ?"


def build_messages(aspect: str) -> list[dict[str, Any]]:
    """Build one user turn with placeholders for the five images, in the order of `Sample.images`."""
    content: list[dict[str, str]] = []
    for title in ("original image", *(f"image {letter}" for letter in LETTERS)):
        content += [{"type": "text", "text": title}, {"type": "image"}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": format_question(aspect)}]}]


def format_completion(reasoning: str, truth: AbstractSet[str]) -> str:
    """Return the text a model is taught to write.

    It parses back to `truth` when `reasoning` holds a visible character, no tag, and leaves room for the tags within
    `MAX_CHARACTERS`.
    """
    return f"{THINK}{reasoning}{THINK_END}{ANSWER}{format_answer(truth)}{ANSWER_END}"
