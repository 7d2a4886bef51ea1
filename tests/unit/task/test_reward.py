"""Partial credit over all 16×16 pairs of answer and truth, and the calls of TRL."""

from functools import partial
from itertools import combinations, product
from typing import Any

import pytest

from hardcase.config import RewardKind
from hardcase.errors import InputError
from hardcase.task.reward import DEFAULT_KIND, KINDS, dpa, dpa_reward, format_reward

SUBSETS = [frozenset(letters) for size in range(5) for letters in combinations("ABCD", size)]
PAIRS = list(product(SUBSETS, SUBSETS))
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
RIGHT, WRONG, BROKEN = (f"<think>x</think><answer>{choice}</answer>" for choice in ("AC", "BD", "AA"))


@EVERY_KIND
def test_only_the_truth_earns_all_and_nothing_leaves_zero_to_one(kind: RewardKind) -> None:
    for predicted, truth in PAIRS:
        reward = dpa(predicted, truth, kind)
        assert 0.0 <= reward <= 1.0
        assert (reward == 1.0) == (predicted == truth)


@EVERY_KIND
def test_none_is_all_or_nothing(kind: RewardKind) -> None:
    for letters in SUBSETS[1:]:
        assert dpa(letters, frozenset(), kind) == 0.0
        assert dpa(frozenset(), letters, kind) == 0.0
    assert dpa(frozenset(), frozenset(), kind) == 1.0


@EVERY_KIND
def test_invalid_text_earns_nothing_even_where_no_letter_is_flawed(kind: RewardKind) -> None:
    assert [dpa(None, truth, kind) for truth in SUBSETS] == [0.0] * 16


@EVERY_KIND
def test_a_step_towards_the_truth_never_costs(kind: RewardKind) -> None:
    for predicted, truth in PAIRS:
        for letter in predicted ^ truth:
            assert dpa(predicted ^ {letter}, truth, kind) >= dpa(predicted, truth, kind)


@EVERY_KIND
def test_renaming_the_letters_changes_nothing(kind: RewardKind) -> None:
    swap = dict(zip("ABCD", "CADB", strict=True))
    for predicted, truth in PAIRS:
        renamed = [frozenset(swap[letter] for letter in letters) for letters in (predicted, truth)]
        assert dpa(*renamed, kind) == dpa(predicted, truth, kind)


@pytest.mark.parametrize("constant", SUBSETS, ids=lambda letters: "".join(sorted(letters)) or "none")
def test_no_constant_answer_pays_under_the_default(constant: frozenset[str]) -> None:
    assert sum(dpa(constant, truth) for truth in SUBSETS) / 16 <= 0.30


def think(answer: str) -> str:
    return f"<think>looks fine</think>{answer}"


# From users' reports on GRPO for pictures (findings: every option named, an empty answer that scores; Visual-RFT's
# issues: tags repeated until something counts).
HACKS = {
    "every option named": think("<answer>ABCD</answer>"),
    "every option and none": think("<answer>ABCD none</answer>"),
    "every option twice": think("<answer>AABBCCDD</answer>"),
    "an empty answer": think("<answer></answer>"),
    "a blank answer": think("<answer> </answer>"),
    "no answer": think(""),
    "nothing": "",
    "only tags": "<think></think><answer>A</answer>",
    "two answers": think("<answer>A</answer><answer>BCD</answer>"),
    "every answer in turn": think("".join(f"<answer>{letter}</answer>" for letter in "ABCD")),
    "the answer in the reasoning": "<think><answer>A</answer></think>",
    "reasoning repeated": 2 * think("") + "<answer>ABCD</answer>",
    "tags left open": "<think>x<answer>ABCD",
    "a hedge": think("<answer>A or B</answer>"),
    "a quoted grammar": think("<answer>A|B|C|D|none</answer>"),
}


@pytest.mark.parametrize("kind", ["exact", "penalised"])
@pytest.mark.parametrize("hack", HACKS)
def test_no_hack_earns_what_an_honest_answer_does(hack: str, kind: RewardKind) -> None:
    """Honest: every letter judged by itself, and rightly three times in four; every truth equally likely."""

    def honest(truth: frozenset[str]) -> float:
        wrong = {each: len(each ^ truth) for each in SUBSETS}
        return sum(0.75 ** (4 - wrong[each]) * 0.25 ** wrong[each] * dpa(each, truth, kind) for each in SUBSETS)

    earned = dpa_reward([HACKS[hack]] * len(SUBSETS), SUBSETS, kind)
    assert sum(earned) < sum(honest(truth) for truth in SUBSETS)
    assert any(earned) == (hack == "every option named")


def test_jaccard_would_pay_half_for_always_naming_every_letter() -> None:
    assert sum(dpa("ABCD", truth, "jaccard") for truth in SUBSETS) / 16 == 0.5


def test_the_default_rewards_more_honest_steps_than_the_strict_definitions() -> None:
    raised = {
        kind: sum(dpa(p ^ {letter}, t, kind) > dpa(p, t, kind) for p, t in PAIRS for letter in p ^ t) for kind in KINDS
    }
    assert raised == {"exact": 64, "subset": 188, "penalised": 260, "jaccard": 408}
    assert DEFAULT_KIND == "penalised"


@pytest.mark.parametrize(
    ("predicted", "truth", "exact", "subset", "penalised", "jaccard"),
    [
        ("AC", "AC", 1, 1, 1, 1),
        ("A", "AC", 0, 1 / 2, 1 / 2, 1 / 2),
        ("ABC", "ABCD", 0, 3 / 4, 3 / 4, 3 / 4),
        ("ABC", "AC", 0, 0, 1 / 2, 2 / 3),
        ("ABCD", "AC", 0, 0, 0, 1 / 2),
        ("ABCD", "ABC", 0, 0, 2 / 3, 3 / 4),
        ("ABD", "ABC", 0, 0, 1 / 3, 1 / 2),
        ("AB", "AC", 0, 0, 0, 1 / 3),
        ("BD", "AC", 0, 0, 0, 0),
        ("AB", "A", 0, 0, 0, 1 / 2),
        ("", "A", 0, 0, 0, 0),
        ("A", "", 0, 0, 0, 0),
    ],
)
def test_each_definition_pays_what_its_formula_says(
    predicted: str, truth: str, exact: float, subset: float, penalised: float, jaccard: float
) -> None:
    paid = {kind: dpa(frozenset(predicted), frozenset(truth), kind) for kind in KINDS}
    assert paid == pytest.approx({"exact": exact, "subset": subset, "penalised": penalised, "jaccard": jaccard})


@pytest.mark.parametrize("kind", ["Jaccard", "", None, ["exact"]])
def test_an_unknown_kind_names_the_known_ones(kind: Any) -> None:
    with pytest.raises(InputError, match="exact, subset, penalised, jaccard"):
        dpa({"A"}, {"A"}, kind)


def conversational(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def in_parts(text: str) -> list[dict[str, Any]]:
    middle = len(text) // 2
    return [
        {"role": "assistant", "content": [{"type": "text", "text": part} for part in (text[:middle], text[middle:])]}
    ]


@pytest.mark.parametrize("form", [str, conversational, in_parts])
def test_trl_may_hand_over_text_or_conversations(form: Any) -> None:
    completions = [form(text) for text in (RIGHT, WRONG, BROKEN)]
    answer = [["A", "C"], ["B", "C", "D"], []]
    columns = {"prompts": ["p"] * 3, "completion_ids": [[1]] * 3, "aspect": ["x"] * 3, "trainer_state": None}
    assert dpa_reward(completions=completions, answer=answer, **columns) == [1.0, pytest.approx(2 / 3), 0.0]
    assert format_reward(completions=completions, answer=answer, **columns) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "completion",
    [
        None,
        7,
        [],
        [None],
        [{}],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": [{"type": "image"}]}],
        [{"role": "assistant", "content": [None]}],
        [{"role": "assistant", "content": []}],
        conversational(RIGHT) * 2,
    ],
)
def test_a_completion_of_another_shape_earns_nothing_and_breaks_nothing(completion: Any) -> None:
    assert dpa_reward([completion], [["A", "C"]]) == [0.0]
    assert format_reward([completion]) == [0.0]


def test_partial_credit_may_be_worth_less_and_the_truth_never() -> None:
    answered = ["AC", "A", "BD", None]
    texts = [think(f"<answer>{answer}</answer>") if answer else "" for answer in answered]
    assert dpa_reward(texts, ["AC"] * 4, worth=0.25) == [1.0, 0.125, 0.0, 0.0]


def test_a_kind_is_bound_for_trl_by_partial_and_keeps_its_name_in_the_logs() -> None:
    reward = partial(dpa_reward, kind="subset")
    assert reward(completions=["<think>x</think><answer>ABC</answer>"], answer=[["A", "C"]]) == [0.0]
    assert reward.func.__name__ == "dpa_reward"


def test_rewards_are_plain_floats_one_a_completion() -> None:
    rewards = dpa_reward([RIGHT] * 3, [["A"], [], ["A", "C"]])
    assert [type(reward) for reward in rewards] == [float] * 3
    assert dpa_reward([], []) == []
    with pytest.raises(ValueError, match="zip"):
        dpa_reward([RIGHT, RIGHT], [["A"]])
