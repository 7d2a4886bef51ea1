"""Our trainer computes what TRL's does, and goes on exactly where it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl import GRPOTrainer

from hardcase.config import GrpoConfig, LoraConfig, SftConfig, TrainConfig
from hardcase.data.cases import MinedCase, judge, read_cases
from hardcase.data.completions import Completion
from hardcase.errors import HardcaseError, InputError
from hardcase.model.grpo import train_grpo
from hardcase.model.internvl import load_model, save_model
from hardcase.model.rows import build_prompt_row
from hardcase.model.sft import fine_tune
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.model.training import COMPLETE, build_lora_config, find_last_checkpoint, train
from hardcase.task.prompt import format_completion
from hardcase.task.sample import ASPECTS, Sample
from tests.support.training import (
    Build,
    assert_equal,
    assert_loss_equals_trls,
    batch_of,
    by_length,
    shuffle,
    tiled,
    trainer_of,
    weights_of,
)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("generations", [1, 2, 8])
def test_loss_log_probabilities_and_gradients_equal_trls(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, generations: int, checkpointing: bool, beta: float
) -> None:
    """Prompts and completions of unequal length, pictures of unequal tiles, rollouts shuffled as TRL shuffles them."""
    save_model(*fresh_model(), tmp_path / "model")

    def build() -> tuple[PreTrainedModel, ProcessorMixin]:
        model, processor = load_model(tmp_path / "model")  # TRL loads the reference model from the same place
        processor.image_processor.max_patches = 3
        return model, processor

    mixed = [tiled(sample) if index % 2 else sample for index, sample in enumerate(samples)]
    arguments = {"gradient_checkpointing": checkpointing, "beta": beta}
    made = trainer_of(HCMGRPOTrainer, build, mixed, tmp_path, arguments=arguments)
    made.model.train()
    made.num_generations = generations
    torch.manual_seed(3)
    batch = made._generate_and_score_completions(
        [build_prompt_row(sample) for sample in mixed[: 8 // generations] for _ in range(generations)]
    )
    batch["completion_mask"] = (torch.arange(6) < torch.tensor([6, 3, 5, 1, 6, 2, 4, 6])[:, None]).long()
    batch["advantages"] = torch.linspace(-1, 1, 8)
    batch = shuffle(batch)
    assert generations == 8 or (batch["prompt_mask"] == 0).any(), "the prompts must differ in length"
    assert_loss_equals_trls(lambda kind: trainer_of(kind, build, mixed, tmp_path, arguments=arguments), batch)


@pytest.mark.parametrize(
    ("loss", "level"),
    [(loss, "token") for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")]
    + [(loss, "sequence") for loss in ("grpo", "luspo")],
)
def test_every_loss_of_trl_is_the_same(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, loss: str, level: str
) -> None:
    arguments = {"loss_type": loss, "importance_sampling_level": level}
    batch = batch_of(trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, arguments), samples)
    assert_loss_equals_trls(lambda kind: trainer_of(kind, fresh_model, samples, tmp_path, arguments), batch)


def test_prompts_with_unlike_numbers_of_images(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    row = build_prompt_row(samples[0])
    (turn,) = row["prompt"]
    placeholders = [part for part in turn["content"] if part["type"] == "image"]
    content = [part for part in turn["content"] if part is not placeholders[-1]]
    fewer = {**row, "prompt": [{**turn, "content": content}], "images": row["images"][:4]}
    assert len(content) == len(turn["content"]) - 1
    made = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    seen: list[int] = []
    made.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    made.model.train()
    batch = made._generate_and_score_completions([row for row in (row, fewer) for _ in range(4)])
    assert seen == [9]
    batch["advantages"] = torch.linspace(-1, 1, 8)
    batch = shuffle(batch)
    assert_loss_equals_trls(lambda kind: trainer_of(kind, fresh_model, samples, tmp_path), batch)


LORA = LoraConfig(rank=4, alpha=8)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_loss_of_adapters_is_the_same(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, checkpointing: bool
) -> None:
    def build(kind: type[GRPOTrainer]) -> GRPOTrainer:
        arguments = {"beta": 0.1, "gradient_checkpointing": checkpointing}
        trainer = trainer_of(kind, fresh_model, samples, tmp_path, arguments, peft_config=peft_lora(fresh_model()[0]))
        torch.manual_seed(5)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:  # zero at first: without this the adapters would change nothing
                torch.nn.init.normal_(weight, std=0.1)
        return trainer

    assert_loss_equals_trls(build, batch_of(build(HCMGRPOTrainer), samples))


def peft_lora(model: PreTrainedModel) -> Any:
    return build_lora_config(TrainConfig(steps=1, batch_size=1, learning_rate=1, lora=LORA), model, "sft")


def test_adapters_are_trained_and_merged_and_training_goes_on_from_their_checkpoint(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"batch_size": 8, "generations": 4, "learning_rate": 1e-2, "max_new_tokens": 6, "threads": 1}
    config = GrpoConfig(steps=4, save_steps=2, beta=0.1, lora=LORA, **common)

    def grpo(folder: Path) -> dict[str, torch.Tensor]:
        model, processor = fresh_model()
        train_grpo(model, processor, samples, solved_once(samples), config, 0, folder)
        return weights_of(model)

    monkeypatch.setattr("hardcase.model.grpo.dpa_reward", by_length)
    whole, before = grpo(tmp_path / "whole"), weights_of(fresh_model()[0])
    assert whole.keys() == before.keys(), "no trace of the adapters"
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert changed == {name for name in whole if "language_model" in name and name.endswith("_proj.weight")}
    with monkeypatch.context() as context:
        stopping(context, "hardcase.model.grpo", 3)
        with pytest.raises(KeyboardInterrupt):
            grpo(tmp_path / "stopped")
    assert_equal(whole, grpo(tmp_path / "stopped"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"top_p": 0.9}, "rollouts of a group are not shared but left to TRL: only plain sampling is supported"),
        ({"generation_kwargs": {"num_beams": 2}}, "only plain sampling is supported, without generation_kwargs"),
    ],
)
def test_sampling_that_cannot_be_shared_is_left_to_trl_which_is_said_once(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, what: str
) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, {"max_steps": 2, **change})
    trainer.reward_funcs[0] = by_length
    seen: list[int] = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer.train()
    assert seen == [40, 10] * 2, "rollouts read every picture, the loss each once"
    assert [what in record.message for record in caplog.records if "left to TRL" in record.message] == [True]


def test_a_model_whose_layers_see_a_window_only_is_left_to_trl(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> tuple[PreTrainedModel, ProcessorMixin]:
        model, processor = fresh_model()
        model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
        return model, processor

    trainer_of(HCMGRPOTrainer, build, samples, tmp_path)
    assert "prompts of a group are not shared but left to TRL: not all of its layers" in caplog.text


def test_rollouts_and_loss_in_bfloat16(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    trainer = trainer_of(
        HCMGRPOTrainer, fresh_model, samples, tmp_path, {"max_steps": 1, "bf16": True, "use_cpu": True}
    )
    trainer.reward_funcs[0] = by_length
    before = weights_of(trainer.model)
    train(trainer, "grpo", tmp_path / "stop")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in trainer.model.parameters())
    assert any(not torch.equal(before[name], weight) for name, weight in weights_of(trainer.model).items())


def test_images_are_encoded_once_for_all_completions(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    seen = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer._generate_and_score_completions([build_prompt_row(sample) for sample in samples[:2] for _ in range(4)])
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

    def train(trainer: Any, *arguments: Any, **options: Any) -> Any:
        trainer.add_callback(Stop(step))
        return whole(trainer, *arguments, **options)

    monkeypatch.setattr(target, "train", train)


def solved_once(samples: list[Sample]) -> list[MinedCase]:
    """Every sample as a hard case."""
    texts = (format_completion("x", sample.truth) for sample in samples)
    return [
        judge(sample.id, sample.truth, [*map(Completion, (text, "", ""))], 0.5)
        for sample, text in zip(samples, texts, strict=True)
    ]


@pytest.mark.parametrize(("rounds", "workers"), [(1, 0), (3, 0), (1, 2), (3, 2)])
def test_grpo_goes_on_from_its_checkpoint_to_the_same_bytes_with_any_workers(
    fresh_model: Build,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    workers: int,
) -> None:
    common = {"batch_size": 8, "generations": 4, "learning_rate": 1e-3, "max_new_tokens": 6, "threads": 1}
    common |= {"accumulation": 2, "hard_share": 0.5, "rounds": rounds}

    def grpo(folder: Path, workers: int = workers) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        model, processor = fresh_model()
        config = GrpoConfig(steps=5, save_steps=2, workers=workers, **common)
        log = train_grpo(model, processor, samples, solved_once(samples), config, 0, folder)
        return weights_of(model), log

    whole, log = grpo(tmp_path / "whole", workers=0)
    with monkeypatch.context() as context:
        stopping(context, "hardcase.model.grpo", 3)
        with pytest.raises(KeyboardInterrupt):
            grpo(tmp_path / "stopped")
    resumed, resumed_log = grpo(tmp_path / "stopped")
    assert_equal(whole, resumed)
    assert log == resumed_log
    for number in range(1, rounds):
        mined = [read_cases(tmp_path / run / f"mined-{number}.parquet") for run in ("whole", "stopped")]
        assert mined[0] == mined[1]
        assert len(mined[0]) == len(samples)


def test_rollouts_used_for_several_updates_survive_a_stop_between_them(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    def trained(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        more = {"max_steps": 6, "num_iterations": 2, "steps_per_generation": 2, "save_steps": 1, "learning_rate": 1e-3}
        trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, folder, arguments=more)
        if stop is not None:
            trainer.add_callback(Stop(stop))
        train(trainer, "grpo", tmp_path / "stop")
        return weights_of(trainer.model)

    whole = trained(tmp_path / "whole")
    for step in (1, 2, 3, 5):  # the rollouts of steps 1 to 4 are made in step 1
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", stop=step)
    assert_equal(whole, trained(tmp_path / "stopped"))


def test_a_training_of_another_shape_does_not_go_on_from_the_checkpoint(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    shape = {"max_steps": 2, "save_steps": 1}
    train(trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, arguments=shape), "grpo", tmp_path / "stop")
    changed = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, arguments={**shape, "num_generations": 8})
    with pytest.raises(InputError, match=r"checkpoint-2: written with num_generations 4, now 8; restore that"):
        train(changed, "grpo", tmp_path / "stop")


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, arguments={"max_steps": 2})
    before = weights_of(trainer.model)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(HardcaseError, match="gradient of step 1 is not finite, so nothing was updated"):
        train(trainer, "grpo", tmp_path / "stop")
    assert_equal(before, weights_of(trainer.model))


def test_the_log_tells_rewards_by_aspect_and_the_share_of_hard_cases(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    config = GrpoConfig(
        steps=1, batch_size=8, generations=4, learning_rate=1e-3, save_steps=1, max_new_tokens=6, threads=1
    )
    model, processor = fresh_model()
    (entry,) = train_grpo(model, processor, samples, solved_once(samples), config, 0, tmp_path)
    assert entry["hard_share"] == 1
    assert {key for key in entry if key.startswith("reward/")} <= {f"reward/{aspect}" for aspect in ASPECTS}
    assert any(key.startswith("reward/") for key in entry)


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


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()
