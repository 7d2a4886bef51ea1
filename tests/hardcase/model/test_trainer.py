"""Our trainer computes what TRL's does, and goes on exactly where it was stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hardcase.config import GrpoConfig, SftConfig, TrainConfig
from hardcase.model.grpo import improve
from hardcase.model.rows import lazy_rows, prompt_row
from hardcase.model.sft import fine_tune
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.task.reward import dpa_reward
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def trainer_of(
    kind: type[GRPOTrainer], build: Build, samples: list[Sample], folder: Path, **kwargs: Any
) -> GRPOTrainer:
    model, processor = build()
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        report_to="none",
        remove_unused_columns=False,
        bf16=False,
    )
    rows = lazy_rows(len(samples), lambda index: prompt_row(samples[index]))
    return kind(model, dpa_reward, args=arguments, train_dataset=rows, processing_class=processor, **kwargs)


def test_log_probabilities_and_gradients_equal_trls(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    ours = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    rows = [prompt_row(sample) for sample in samples[:2] for _ in range(4)]
    batch = ours._generate_and_score_completions(rows)
    shuffled = torch.tensor([5, 0, 3, 6, 1, 7, 2, 4])
    pictures = torch.split(batch["pixel_values"], batch["num_images"])
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)[shuffled]
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)[shuffled]
    assert (batch["prompt_mask"] == 0).any(), "the prompts must differ in length for this to show anything"
    results = {}
    for name, kind in (("stock", GRPOTrainer), ("ours", HCMGRPOTrainer)):
        trainer = trainer_of(kind, fresh_model, samples, tmp_path)
        trainer._groups = batch["group"][shuffled]
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            ids,
            mask,
            batch["completion_ids"].size(1),
            compute_entropy=True,
            pixel_values=torch.cat([pictures[index] for index in shuffled]),
            num_images=[5] * 8,
        )
        shown = batch["completion_mask"][shuffled].bool()
        (logps[shown] * torch.arange(int(shown.sum()))).sum().backward()
        gradients = {key: weight.grad for key, weight in trainer.model.named_parameters() if weight.grad is not None}
        results[name] = logps[shown].detach(), entropies[shown].detach(), gradients
    stock, shared = results["stock"], results["ours"]
    torch.testing.assert_close(shared[0], stock[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared[1], stock[1], rtol=1e-4, atol=1e-4)
    assert shared[2].keys() == stock[2].keys()
    largest = max(float(gradient.abs().max()) for gradient in stock[2].values())
    for key, gradient in stock[2].items():
        # A bias of attention's keys has no gradient but rounding.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(shared[2][key] / scale, gradient / scale, rtol=0, atol=1e-4)


def test_pictures_are_encoded_once_for_all_completions(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    seen = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer._generate_and_score_completions([prompt_row(sample) for sample in samples[:2] for _ in range(4)])
    assert seen == [10], "two prompts of five pictures"


class Stop(TrainerCallback):
    """Ends a training as a kill does: in the middle, nothing saved since the last checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopping(monkeypatch: pytest.MonkeyPatch, module: str, step: int) -> None:
    import importlib

    target = importlib.import_module(module)
    whole = target.train

    def train(trainer: Any, what: str) -> Any:
        trainer.add_callback(Stop(step))
        return whole(trainer, what)

    monkeypatch.setattr(target, "train", train)


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_grpo_goes_on_from_its_checkpoint_to_the_same_bytes(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GrpoConfig(
        steps=5, batch_size=8, generations=4, learning_rate=1e-3, save_steps=2, max_new_tokens=6, threads=1
    )
    rates = np.linspace(0.1, 0.9, len(samples))

    def grpo(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        model, processor = fresh_model()
        log = improve(model, processor, samples, rates, [False] * len(samples), config, 0, folder)
        return weights_of(model), log

    whole, log = grpo(tmp_path / "whole")
    with monkeypatch.context() as context:
        stopping(context, "hardcase.model.grpo", 3)
        with pytest.raises(KeyboardInterrupt):
            grpo(tmp_path / "stopped")
    resumed, resumed_log = grpo(tmp_path / "stopped")
    assert_equal(whole, resumed)
    assert log == resumed_log


def test_sft_goes_on_from_its_checkpoint_to_the_same_bytes(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up = TrainConfig(steps=4, batch_size=4, learning_rate=1e-3, save_steps=2)
    phases = {"warm_up": warm_up, "reading": warm_up.model_copy(update={"steps": 6})}
    config = SftConfig(steps=8, batch_size=2, learning_rate=1e-3, save_steps=2, threads=1, **phases)

    def sft(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        model, processor = fresh_model()
        log = fine_tune(model, processor, samples, config, 0, folder)
        return weights_of(model), log

    whole, log = sft(tmp_path / "whole")
    for step in (3, 5, 7):  # in each phase
        with monkeypatch.context() as context:
            stopping(context, "hardcase.model.sft", step)
            with pytest.raises(KeyboardInterrupt):
                sft(tmp_path / "stopped")
    resumed, resumed_log = sft(tmp_path / "stopped")
    assert_equal(whole, resumed)
    assert log == resumed_log


def test_a_checkpoint_that_was_not_written_whole_is_passed_over(tmp_path: Path) -> None:
    from hardcase.model.training import COMPLETE, last_checkpoint

    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()
