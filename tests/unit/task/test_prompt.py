"""The question and the text a model is taught to write."""

import pytest

from hardcase.task.prompt import ASPECT_NAMES, build_messages, format_completion, format_question
from hardcase.task.sample import ASPECTS


@pytest.mark.parametrize("aspect", ASPECTS)
def test_five_images_are_announced_in_order_and_the_question_comes_last(aspect: str) -> None:
    (turn,) = build_messages(aspect)
    assert turn["role"] == "user"
    shown = ["<image>" if part["type"] == "image" else part["text"] for part in turn["content"]]
    titles = ["original image", "image A", "image B", "image C", "image D"]
    assert shown == [piece for title in titles for piece in (title, "<image>")] + [format_question(aspect)]


def test_each_aspect_has_its_own_question_in_plain_words() -> None:
    assert len({format_question(aspect) for aspect in ASPECTS}) == len(ASPECTS)
    assert format_question("physical_shadow") == "which images show a problem in physical shadow ?"
    assert tuple(ASPECT_NAMES) == ASPECTS


def test_unknown_aspect_is_refused() -> None:
    with pytest.raises(KeyError):
        build_messages("colour")


def test_completion_has_the_paper_s_form() -> None:
    assert format_completion("A light left", frozenset("CA")) == "<think>A light left</think><answer>AC</answer>"
    assert format_completion("all fine", frozenset()) == "<think>all fine</think><answer>none</answer>"
