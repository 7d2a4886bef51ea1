"""Settings that pass through to TRL, a frozen vision tower, and a training that is told to end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from hardcase.config import GrpoConfig, LoraConfig, SftConfig, load_profile
from hardcase.data.cases import MinedCase, judge
from hardcase.data.completions import Completion
from hardcase.errors import InputError
from hardcase.lifetime import STOP
from hardcase.model.grpo import build_grpo_arguments, train_grpo
from hardcase.model.sft import build_sft_arguments, fine_tune
from hardcase.model.training import build_lora_config, find_last_checkpoint
from hardcase.steps.configure import check_model
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
Weights = dict[str, torch.Tensor]
COMMON: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "threads": 1, "save_steps": 100}
GRPO: dict[str, Any] = {**COMMON, "generations": 4, "max_new_tokens": 6}


def weights_of(model: PreTrainedModel) -> Weights:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: Weights, after: Weights) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def unsolved(samples: list[Sample]) -> list[MinedCase]:
    return [judge(sample.id, sample.truth, [*map(Completion, ("", ""))], 0.5) for sample in samples]


def by_length(completions: list[Any], **_: Any) -> list[float]:
    """A reward that random texts earn unequally."""
    return [float(len(completion[0]["content"]) % 3) for completion in completions]


@pytest.fixture
def grpo(fresh_model: Build, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains the fresh model, and returns its weights and the log."""
    monkeypatch.setattr("hardcase.model.grpo.dpa_reward", by_length)

    def run(folder: Path, **settings: Any) -> tuple[Weights, list[dict[str, Any]]]:
        folder.mkdir(parents=True, exist_ok=True)
        model, processor = fresh_model()
        config = GrpoConfig(**{**GRPO, "steps": 3, **settings})
        log = train_grpo(model, processor, samples, unsolved(samples), config, 0, folder)
        return weights_of(model), log

    return run


@pytest.fixture
def sft(fresh_model: Build, samples: list[Sample]) -> Callable[..., Any]:
    """The same for SFT."""

    def run(folder: Path, **settings: Any) -> tuple[Weights, list[dict[str, Any]]]:
        folder.mkdir(parents=True, exist_ok=True)
        model, processor = fresh_model()
        log = fine_tune(model, processor, samples, SftConfig(**{**COMMON, "steps": 3, **settings}), 0, folder)
        return weights_of(model), log

    return run


@pytest.mark.parametrize(
    ("section", "trl", "words"),
    [
        ("grpo", {"epsilon_hi": 0.28}, "grpo.trl.epsilon_hi: TRL's GRPOConfig has no such setting; 'epsilon_high' is"),
        ("sft", {"epsilon": 0.28}, "sft.trl.epsilon: TRL's SFTConfig has no such setting"),
        ("grpo", {"learning_rate": 0.1}, "grpo.trl.learning_rate: set `grpo.learning_rate` instead"),
        (
            "sft",
            {"per_device_train_batch_size": 2},
            "sft.trl.per_device_train_batch_size: set `sft.batch_size` in",
        ),
        ("grpo", {"num_generations": 2}, "grpo.trl.num_generations: set `grpo.generations` instead"),
        ("grpo", {"output_dir": "/elsewhere"}, "grpo.trl.output_dir: hardcase sets this itself"),
        ("sft", {"push_to_hub": True}, "sft.trl.push_to_hub: hardcase sets this itself"),
        ("sft", {"hub_model_id": "x"}, "sft.trl.hub_model_id: hardcase sets this itself"),
        ("grpo", {"log_completions_hub_repo": "x"}, "grpo.trl.log_completions_hub_repo: hardcase sets this itself"),
        ("grpo", {"trust_remote_code": True}, "grpo.trl.trust_remote_code: hardcase sets this itself"),
        ("grpo", {"model_init_kwargs": {"trust_remote_code": True}}, "grpo.trl.model_init_kwargs: hardcase sets"),
        ("sft", {"max_length": 100}, "sft.trl.max_length: hardcase sets this itself"),
        ("grpo", {"seed": 1}, "grpo.trl.seed: hardcase sets this itself"),
        ("grpo", {"epsilon": "much"}, "grpo.trl.epsilon 'much': Input should be a valid number"),
        ("grpo", {"top_k": 1.5}, "grpo.trl.top_k 1.5: Input should be a valid integer"),
        ("grpo", {"loss_type": "best"}, "grpo.trl.loss_type 'best': Input should be 'bnpo', 'cispo'"),
        ("sft", {"lr_scheduler_type": "steep"}, "sft.trl: steep is not a valid SchedulerType"),
        ("sft.warm_up", {"optim": "fast"}, "sft.warm_up.trl: fast is not a valid OptimizerNames"),
    ],
)
def test_a_setting_that_trl_cannot_take_is_refused_before_the_run(
    section: str, trl: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        check_model(load_profile("smoke", {f"{section}.trl": trl}))
    assert str(refusal.value).startswith(words)
    assert "\n" not in str(refusal.value)


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"grpo\.trl: top_k has no value; leave it out"):
        load_profile("smoke", {"grpo.trl": {"top_k": None}})


def test_settings_reach_trl_and_are_part_of_what_a_step_signs(grpo: Any, tmp_path: Path) -> None:
    profile = load_profile("smoke", {"grpo.trl.epsilon_high": 0.28, "sft.trl": {"lr_scheduler_type": "constant"}})
    check_model(profile)
    assert build_grpo_arguments(profile.grpo, 0, tmp_path).epsilon_high == 0.28
    assert build_sft_arguments(profile.sft, 0, tmp_path).lr_scheduler_type == "constant"
    assert profile.model_dump(mode="json")["grpo"]["trl"] == {"epsilon_high": 0.28}
    _, log = grpo(tmp_path, trl={"lr_scheduler_type": "constant", "max_grad_norm": 0.5})
    assert [entry["learning_rate"] for entry in log] == [0.01] * 3


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_a_frozen_vision_tower_keeps_every_bit_and_the_rest_learns(
    step: str, request: pytest.FixtureRequest, fresh_model: Build, tmp_path: Path
) -> None:
    train, before = request.getfixturevalue(step), weights_of(fresh_model()[0])
    free = changed(before, train(tmp_path / "free")[0])
    frozen = changed(before, train(tmp_path / "frozen", freeze_vision_tower=True)[0])
    tower = {name for name in before if ".vision_tower." in name}
    assert free & tower, "it learns by default"
    assert not frozen & tower
    assert {name for name in frozen if "multi_modal_projector" in name}
    assert {name for name in frozen if "language_model" in name}


def test_adapters_in_a_frozen_vision_tower_are_refused(fresh_model: Build) -> None:
    lora = LoraConfig(rank=4, alpha=8, targets=r".*\.q_proj")
    config = GrpoConfig(**GRPO, steps=1, lora=lora, freeze_vision_tower=True)
    with pytest.raises(InputError, match=r"grpo\.lora\.targets .* matches 'model\.vision_tower\..*; change one"):
        build_lora_config(config, fresh_model()[0], "grpo")
    only_language = config.model_copy(update={"lora": LoraConfig(rank=4, alpha=8)})
    assert build_lora_config(only_language, fresh_model()[0], "grpo")


class Terminate(TrainerCallback):
    """Sends this process SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("moment", [2, 3, 5], ids=["between rollouts", "at their end", "at the end"])
@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_a_training_told_to_end_saves_its_step_and_resumes_to_the_same_bytes(
    step: str, moment: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, train = f"hardcase.model.{step}", request.getfixturevalue(step)
    settings = {"steps": 5, **({"updates": 3} if step == "grpo" else {})}
    whole, log = train(tmp_path / "whole", **settings)
    with monkeypatch.context() as context:
        import importlib

        stock = importlib.import_module(module).train

        def terminated(trainer: Any, *arguments: Any) -> Any:
            trainer.add_callback(Terminate(moment))
            return stock(trainer, *arguments)

        context.setattr(f"{module}.train", terminated)
        with pytest.raises(SystemExit) as end:
            train(tmp_path / "stopped", **settings)
    assert end.value.code == 143
    folder = tmp_path / "stopped"
    checkpoint = find_last_checkpoint(folder / "sft" if step == "sft" else folder)
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{moment}", "the step at work is finished"
    (folder / STOP).unlink()  # as the next start does
    resumed, resumed_log = train(folder, **settings)
    assert not changed(whole, resumed)
    assert log == resumed_log
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "afterwards SIGTERM ends the process as usual"
