"""Signs of a training that taught little: told where they matter, silent elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from hardcase.config import TinyModelConfig
from hardcase.data.cases import judge
from hardcase.data.completions import Completion
from hardcase.model.internvl import build_tiny, hold_equal_weights, save_model
from hardcase.stats.learning import list_warnings


def entry(cut: float = 0.0, equal: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"phase": "grpo", "completions/clipped_ratio": cut, "frac_reward_zero_std": equal, **more}


@pytest.mark.parametrize(
    ("cut", "warned"), [(5, []), (6, ["mine: 6% of the rollouts were cut at mine.max_new_tokens"])]
)
def test_cut_rollouts_are_reported_above_one_in_twenty(cut: int, warned: list[str]) -> None:
    rollouts = [Completion("<think>and", cut=number < cut) for number in range(100)]
    warnings = list_warnings([judge("a", frozenset("A"), rollouts, 0.5)])
    assert [warning.split(" and count")[0] for warning in warnings] == warned


def test_cut_answers_are_reported_of_either_model() -> None:
    scores = {"chance": {"overall": 1.0}, "sft": {"cut": 0.5}, "final": {"cut": 0.06}}
    first, second = list_warnings(scores=scores)
    assert first.startswith("evaluate: 6% of the answers of the final model were cut at evaluate.max_new_tokens")
    assert second.startswith("evaluate: 50% of the answers of the SFT model")
    assert list_warnings(scores={"sft": None, "final": {"cut": 0.05}}) == []
    assert list_warnings(scores={"sft": None, "final": {"overall": 1.0}}) == [], "version 0.1.0 did not count"


@pytest.mark.parametrize(
    ("high", "bounds", "warned"),
    [
        (20.0, [20.5, 23.0], []),
        (
            20.5,
            [20.5, 23.0],
            ["evaluate: overall 21.0 [20.5, 23.0] is not shown to be above chance, 18.0 "],
        ),
        (20.0, None, ["evaluate: overall 21.0 [too few groups] is not shown to be above chance, 18.0 "]),
    ],
)
def test_model_no_better_than_guessing_is_reported_whoever_promoted_it(
    high: float, bounds: list[float] | None, warned: list[str]
) -> None:
    chance = {"overall": 18.0, "intervals": {"overall": [16.0, high]}}
    final = {"overall": 21.0, "intervals": {"overall": bounds}}
    warnings = list_warnings(scores={"chance": chance, "sft": None, "final": final})
    assert warnings == [f"{start}[16.0, {high}]" for start in warned]


@pytest.mark.parametrize(("low", "warned"), [(31.1, 0), (31.0, 1)])
def test_model_that_learned_one_answer_is_reported_though_it_is_above_chance(low: float, warned: int) -> None:
    chance = {"overall": 18.0, "intervals": {"overall": [16.0, 20.0]}}
    final = {"overall": 33.0, "intervals": {"overall": [low, 35.0]}}
    constant = {"answer": "none", "overall": 31.0}
    warnings = list_warnings(scores={"chance": chance, "constant": constant, "sft": None, "final": final})
    said = "evaluate: overall 33.0 [31.0, 35.0] is not shown to be above that of always answering none, 31.0"
    assert warnings == [said] * warned


@pytest.mark.parametrize(
    ("log", "warned"),
    [
        ([entry(), entry(weights_changed=True)], []),
        ([{"phase": "sft", "loss": 1.0}], []),
        ([entry(cut=0.0), entry(cut=0.12)], ["grpo: 6% of the completions were cut"]),
        ([entry(equal=0.95), entry(equal=0.95)], []),
        ([entry(equal=1.0), entry(equal=0.94)], ["grpo: 97% of the groups had equal rewards"]),
        ([entry(), entry(weights_changed=False)], ["grpo: the final weights equal those of the SFT model"]),
    ],
)
def test_grpo_that_could_not_learn_is_reported(log: list[dict[str, Any]], warned: list[str]) -> None:
    warnings = list_warnings(log=log)
    assert [warning[: len(start)] for warning, start in zip(warnings, warned, strict=True)] == warned


def test_equal_weights_are_equal_in_any_type_and_one_changed_weight_is_seen(tmp_path: Path) -> None:
    sizes = TinyModelConfig(image_size=32, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=1, heads=2)
    model, processor = build_tiny(sizes, ["a b"], seed=0)
    save_model(model, processor, tmp_path / "sft")
    save_model(model.bfloat16(), processor, tmp_path / "short")
    assert hold_equal_weights(tmp_path / "sft", tmp_path / "short")
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    weight.data[0, 0] += 1
    save_model(model, processor, tmp_path / "trained")
    assert not hold_equal_weights(tmp_path / "short", tmp_path / "trained")
