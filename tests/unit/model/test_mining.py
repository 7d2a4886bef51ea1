from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardcase.config import GrpoConfig
from hardcase.data.cases import MinedCase, draw_mined, judge, read_cases, write_cases
from hardcase.data.completions import Completion
from hardcase.model.mining import GroupSampler, Weights, compute_weights
from hardcase.task.sample import Sample

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
    case = judge("id", frozenset("AC"), [*map(Completion, texts)], hard_below=0.5)
    assert (case.exact_rate, case.hard, case.suspect) == (exact_rate, hard, suspect)


def test_an_invalid_rollout_is_kept_as_no_answer() -> None:
    assert judge("id", frozenset("AC"), [Completion(RIGHT), Completion(INVALID)], hard_below=0.5).answers == [
        "AC",
        None,
    ]


def test_cases_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    cases = [
        judge("a", frozenset("AC"), [Completion(RIGHT), Completion(INVALID, cut=True)], 0.5),
        judge("b", frozenset(), [Completion(PARTIAL)] * 2, 0.5),
    ]
    write_cases(cases, tmp_path / "mined")
    assert read_cases(tmp_path / "mined") == cases


def test_mined_samples_are_a_random_few_each_once_in_order_or_all() -> None:
    drawn = draw_mined(10_000, 1000)
    assert drawn == sorted(set(drawn)) == draw_mined(10_000, 1000)
    assert len(drawn) == 1000
    assert min(Counter(index % 4 for index in drawn).values()) > 200, "all aspects, whatever their order"
    assert draw_mined(3, None) == draw_mined(3, 4) == [0, 1, 2]


def mined(*answers: list[str | None]) -> tuple[list[MinedCase], list[Sample]]:
    """Cases of the truth AC with these answers."""
    texts = [
        [INVALID if answer is None else f"<think>x</think><answer>{answer}</answer>" for answer in each]
        for each in answers
    ]
    cases = [judge(str(number), frozenset("AC"), [*map(Completion, each)], 0.5) for number, each in enumerate(texts)]
    return cases, [Sample(case.id, "appearance", frozenset("AC"), None, case.id, ()) for case in cases]


def grpo(**options: Any) -> GrpoConfig:
    return GrpoConfig(steps=1, batch_size=8, learning_rate=1e-3, **options)


SOLVED_0_TO_8 = [["AC"] * right + ["B"] * (8 - right) for right in range(9)]


def test_hard_cases_get_their_share_of_the_draws_by_how_much_they_disagree() -> None:
    cases, samples = mined(*SOLVED_0_TO_8)
    hard = [case.hard for case in cases]
    assert hard == [False, True, True, True] + [False] * 5
    weights = compute_weights(cases, samples, grpo(reward="exact", hard_share=0.7))
    rest = 0.3 / 9
    assert weights[hard].sum() == pytest.approx(0.7 + 3 * rest)
    assert weights.sum() == pytest.approx(1)
    assert (weights[1] - rest) / (weights[3] - rest) == pytest.approx((1 * 7) / (3 * 5))
    assert weights[[0, 4, 8]] == pytest.approx([rest] * 3)


def test_partial_credit_counts_in_the_spread_where_it_is_rewarded() -> None:
    unlike, alike = ["AC", "A", "B", "D"], ["AC", "A", "C", "A"]
    assert len(set(compute_weights(*mined(unlike, alike), grpo(reward="exact", hard_share=1)))) == 1
    weights = compute_weights(*mined(unlike, alike), grpo(reward="penalised", partial_credit=1, hard_share=1))
    assert weights[0] > 2 * weights[1]


def test_suspects_are_left_out_where_their_labels_are_in_doubt() -> None:
    weights = compute_weights(*mined(*SOLVED_0_TO_8), grpo(hard_share=0.5, suspects=False))
    assert weights[0] == 0
    assert weights[8] == pytest.approx(0.5 / 8)
    assert weights.sum() == pytest.approx(1)


def test_a_share_of_hard_cases_asks_nothing_where_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    assert compute_weights(*mined(["AC"] * 4, ["AC", "AC", "AC", "B"]), grpo(hard_share=0.3)).tolist() == [0.5] * 2
    assert "no case is hard" in caplog.text


def test_a_pool_that_was_never_solved_is_drawn_alike() -> None:
    pool = mined(["B"], ["D"], [None], ["none"])
    assert compute_weights(*pool, grpo(hard_share=0.3, suspects=False)).tolist() == [0.25] * 4


def test_without_a_share_of_hard_cases_all_are_drawn_alike() -> None:
    assert compute_weights(*mined(*SOLVED_0_TO_8), grpo(hard_share=0)) == pytest.approx([1 / 9] * 9)


def always(*weights: float) -> Callable[[int], Weights]:
    return lambda _: np.array(weights)


def test_groups_are_complete_and_a_batch_has_no_prompt_twice() -> None:
    sampler = GroupSampler(always(*[0.1] * 10), prompts=4, generations=3, batches=5, repeats=2, seed=1)
    order = list(sampler)
    assert len(order) == len(sampler) == 4 * 3 * 5 * 2
    assert order == list(sampler)
    for start in range(0, len(order), 24):
        first, second = order[start : start + 12], order[start + 12 : start + 24]
        assert first == second
        assert all(len(set(first[at : at + 3])) == 1 for at in range(0, 12, 3))
        assert len(set(first)) == 4


def test_draws_follow_the_weights() -> None:
    sampler = GroupSampler(always(0.0, 0.2, 0.8), prompts=1, generations=1, batches=2000, repeats=1, seed=0)
    counts = Counter(sampler)
    assert counts[0] == 0
    assert counts[2] / 2000 == pytest.approx(0.8, abs=0.04)


def test_a_pool_of_which_too_few_can_be_drawn_still_fills_a_batch() -> None:
    sampler = GroupSampler(always(0.0, 0.5, 0.5), prompts=4, generations=2, batches=1, repeats=1, seed=0)
    order = list(sampler)
    assert len(order) == 8
    assert set(order) == {1, 2}


def test_no_case_is_drawn_more_often_than_allowed_while_there_are_others() -> None:
    options = {"prompts": 2, "generations": 1, "repeats": 1, "seed": 0, "most_draws": 3}
    counts = Counter(GroupSampler(always(0.9, *[0.02] * 5), batches=8, **options))
    assert counts[0] == 3
    assert sum(counts.values()) == 16


def test_when_every_case_was_drawn_as_often_as_allowed_all_are_drawn_again(caplog: pytest.LogCaptureFixture) -> None:
    sampler = GroupSampler(always(0.5, 0.5), prompts=2, generations=1, batches=3, repeats=1, seed=0, most_draws=1)
    assert Counter(sampler) == {0: 3, 1: 3}
    assert "drawn less than 1 times" in caplog.text


def test_each_round_asks_for_its_weights_when_it_begins() -> None:
    asked = []

    def weights(number: int) -> Weights:
        asked.append((number, len(drawn)))
        return np.eye(3)[number]

    drawn: list[int] = []
    for index in GroupSampler(weights, prompts=1, generations=2, batches=6, repeats=1, seed=0, rounds=3):
        drawn.append(index)
    assert drawn == [0] * 4 + [1] * 4 + [2] * 4
    assert asked == [(0, 0), (1, 4), (2, 8)]
