from collections import Counter

import numpy as np
import pytest

from hardcase.config import MineConfig
from hardcase.model.mining import GroupSampler, judge, mined_weights

RIGHT, PARTIAL, INVALID = (
    "<think>x</think><answer>AC</answer>",
    "<think>x</think><answer>A</answer>",
    "no answer",
)


@pytest.mark.parametrize(
    ("texts", "exact_rate", "hard", "suspect"),
    [
        ([RIGHT] * 4, 1.0, False, False),
        ([RIGHT, PARTIAL, PARTIAL, INVALID], 0.25, True, False),
        ([PARTIAL] * 4, 0.0, False, True),
        ([INVALID] * 4, 0.0, False, True),
        ([RIGHT, RIGHT, PARTIAL, PARTIAL], 0.5, False, False),
    ],
)
def test_a_case_is_hard_when_it_is_solved_seldom_and_suspect_when_never(
    texts: list[str], exact_rate: float, hard: bool, suspect: bool
) -> None:
    case = judge("id", frozenset("AC"), texts, MineConfig(k=4, hard_below=0.5))
    assert (case.exact_rate, case.hard, case.suspect) == (exact_rate, hard, suspect)


def test_an_invalid_rollout_is_kept_as_no_answer() -> None:
    assert judge("id", frozenset("AC"), [RIGHT, INVALID], MineConfig(k=2)).answers == ["AC", None]


def test_what_was_never_solved_is_never_drawn_and_what_disagrees_most() -> None:
    weights = mined_weights(np.array([0.0, 0.25, 0.5, 1.0]))
    assert weights[0] == 0
    assert weights[2] == weights.max()
    assert 0 < weights[3] < weights[1]
    assert weights.sum() == pytest.approx(1)


def test_a_pool_that_was_never_solved_is_drawn_alike() -> None:
    assert mined_weights(np.zeros(4)).tolist() == [0.25] * 4


def test_groups_stay_whole_and_a_prompt_comes_once_a_batch() -> None:
    sampler = GroupSampler(np.full(10, 0.1), prompts=4, generations=3, batches=5, repeats=2, seed=1)
    order = list(sampler)
    assert len(order) == len(sampler) == 4 * 3 * 5 * 2
    assert order == list(sampler)
    for start in range(0, len(order), 24):
        first, second = order[start : start + 12], order[start + 12 : start + 24]
        assert first == second
        assert all(len(set(first[at : at + 3])) == 1 for at in range(0, 12, 3))
        assert len(set(first)) == 4


def test_draws_follow_the_weights() -> None:
    sampler = GroupSampler(np.array([0.0, 0.2, 0.8]), prompts=1, generations=1, batches=2000, repeats=1, seed=0)
    counts = Counter(sampler)
    assert counts[0] == 0
    assert counts[2] / 2000 == pytest.approx(0.8, abs=0.04)


def test_a_pool_of_which_too_few_can_be_drawn_still_fills_a_batch() -> None:
    sampler = GroupSampler(np.array([0.0, 0.5, 0.5]), prompts=4, generations=2, batches=1, repeats=1, seed=0)
    order = list(sampler)
    assert len(order) == 8
    assert set(order) == {1, 2}
