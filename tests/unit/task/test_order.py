"""A question in another order of the candidates is the same question, and its answer is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardcase.task.order import ORDERS, share_flags, turn_back, turn_sample
from hardcase.task.sample import ASPECTS, LETTERS, Sample

IMAGES = (b"original", b"a", b"b", b"c", b"d")
SIZES = ((9, 9), (1, 1), (2, 2), (3, 3), (4, 4))


def sample(truth: frozenset[str]) -> Sample:
    return Sample("s", ASPECTS[0], truth, None, "g", IMAGES, SIZES)


@given(st.sets(st.sampled_from(LETTERS)), st.integers(0, ORDERS - 1))
def test_truth_of_a_turned_sample_is_the_truth_read_back(truth: set[str], order: int) -> None:
    turned = turn_sample(sample(frozenset(truth)), order)
    assert turn_back(turned.truth, order) == truth
    flagged = {turned.images[1 + LETTERS.index(letter)] for letter in turned.truth}
    assert flagged == {IMAGES[1 + LETTERS.index(letter)] for letter in truth}


@pytest.mark.parametrize(("order", "images"), [(0, b"abcd"), (1, b"bcda"), (2, b"cdab"), (3, b"dabc")])
def test_original_stays_first_and_sizes_go_with_their_images(order: int, images: bytes) -> None:
    turned = turn_sample(sample(frozenset()), order)
    assert tuple(turned.images) == (b"original", *(bytes([image]) for image in images))
    assert [size[0] for size in turned.sizes] == [9, *(1 + b"abcd".index(image) for image in images)]


def test_share_of_flags_leaves_invalid_answers_out() -> None:
    answers = [frozenset("A"), None, frozenset("CD"), frozenset("B")]  # A; invalid; C and D in order 2 are A and B
    assert share_flags(answers) == {"A": 1.0, "B": 1 / 3, "C": 0.0, "D": 0.0}
    assert share_flags([None, None]) == dict.fromkeys(LETTERS, 0.0)
