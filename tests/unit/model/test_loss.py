"""The loss of HCMGRPOTrainer equals TRL's although it leaves out, keeps together and computes once what it can."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import flex_attention as flex_integration
from trl import GRPOTrainer

from hardcase.config import Attention
from hardcase.errors import InputError
from hardcase.model.groups import Batch
from hardcase.model.internvl import load_model, save_model, set_attention
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.model.training import train
from hardcase.task.sample import Sample
from tests.support.training import (
    Build,
    assert_equal,
    assert_loss_equals_trls,
    batch_of,
    by_length,
    rows_of,
    tiled,
    trainer_of,
    weights_of,
)


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without its compiled kernels, which have no gradients on CPU (torch 2.13, 2082)."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_WARNINGS_SHOWN", {"flex_attention_performance"})
    monkeypatch.setattr(flex_integration, "compile_friendly_flex_attention", uncompiled)


def uncompiled(query: Any, key: Any, value: Any, training: bool, **kwargs: Any) -> Any:
    return flex.flex_attention(query, key, value, **kwargs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # that dynamo reads
def test_block_sparse_attention_gives_the_loss_of_trl(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, flex_on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardcase.model.shared_prefix.BLOCK", 16)  # with 128 the rows would be one block
    seen = []

    def build(kind: type[GRPOTrainer]) -> GRPOTrainer:
        trainer = trainer_of(kind, fresh_model, samples, tmp_path)
        if kind is HCMGRPOTrainer:
            set_attention(trainer.model, "flex_attention")
            layer = trainer.model.model.language_model.layers[0]
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
        return trainer

    batch = batch_of(trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path), samples)
    assert_loss_equals_trls(build, batch)
    assert [type(mask) for mask in seen] == [flex.BlockMask]
    assert 0 < seen[0].sparsity() < 100


def test_rollouts_with_block_sparse_attention_are_those_with_dense(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    def roll_out(attention: Attention) -> torch.Tensor:
        trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
        set_attention(trainer.model, attention)
        torch.manual_seed(3)
        ids: torch.Tensor = trainer._generate_and_score_completions(rows_of(samples[:2], 4))["completion_ids"]
        return ids

    assert roll_out("flex_attention").equal(roll_out("sdpa"))


def test_attention_that_this_machine_lacks_is_refused_in_one_line(fresh_model: Build) -> None:
    with pytest.raises(InputError, match=r"attention 'flash_attention_2': .*; set `attention: sdpa`"):
        set_attention(fresh_model()[0], "flash_attention_2")


def test_logits_over_the_vocabulary_never_exist_whole(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    batch, called = batch_of(trainer, samples), list[Any]()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.lm_head.register_forward_hook(lambda *_: called.append(1))
    trainer._compute_loss(trainer.model, batch).backward()
    assert trainer.model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert not called


def test_an_image_token_that_was_sampled_does_not_break_the_loss(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path)
    batch = batch_of(trainer, samples)
    batch["completion_ids"][:, 0] = trainer.model.config.image_token_id
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.isfinite()


def by_group(prompts: list[Any], **_: Any) -> list[float]:
    """A reward with a spread in the first of every four groups of four only."""
    return [float(index % 16 in (1, 2)) for index in range(len(prompts))]


def test_completions_without_an_advantage_cost_nothing_and_change_nothing(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    shape = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 10, "learning_rate": 1e-3}
    shape |= {"weight_decay": 0.1, "temperature": 0.9, "logging_steps": 1}

    def trained(folder: Path, leaves_out: bool, turn: int) -> tuple[dict[str, torch.Tensor], list[int], list[Any]]:
        trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, folder, shape)
        steps = iter(range(10))

        def reward(prompts: list[Any], **kwargs: Any) -> list[float]:  # no group has a spread in every third step
            return [0.0] * len(prompts) if next(steps) % 3 == turn else by_group(prompts)

        reward.__name__ = "reward"
        trainer.reward_funcs[0], trainer._leaves_out = reward, leaves_out
        seen: list[int] = []
        trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
        log = train(trainer, "grpo", folder / "stop")
        return weights_of(trainer.model), seen, log

    weights, seen, log = trained(tmp_path / "without", True, 1)
    all_weights, all_seen, all_log = trained(tmp_path / "with", False, 1)
    assert all_seen == [20, 5, 5, 5, 5] * 10, "all prompts at once in rollouts, then each in the loss"
    assert seen == [number for step in range(10) for number in [20, 1 if step % 3 == 1 else 5, 1, 1, 1]]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, all_weights[name], rtol=0, atol=5e-6, msg=name)
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in all_log], abs=1e-6)
    assert ["entropy" not in entry for entry in log] == [step % 3 == 1 for step in range(10)]
    assert any(not torch.equal(weights[name], weight) for name, weight in weights_of(fresh_model()[0]).items())


def test_completions_of_a_prompt_stay_together_over_the_passes_of_a_step(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(
        HCMGRPOTrainer, fresh_model, samples, tmp_path, {"gradient_accumulation_steps": 4, "max_steps": 1}
    )
    trainer.reward_funcs[0] = by_length
    trainer._leaves_out = False
    seen: list[int] = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer.train()
    assert seen == [40, 10, 10, 10, 10], "TRL's shuffle would spread eight prompts over four passes"


@pytest.mark.parametrize("tiles", [1, 3])
def test_each_image_is_processed_once_a_step(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, tiles: int
) -> None:
    def build() -> tuple[PreTrainedModel, ProcessorMixin]:
        model, processor = fresh_model()
        processor.image_processor.max_patches = tiles
        return model, processor

    trainer = trainer_of(HCMGRPOTrainer, build, [*map(tiled, samples)], tmp_path)
    processed: list[int] = []
    images = trainer.processing_class.image_processor
    preprocess = images.preprocess

    def count(images: Any, *args: Any, **kwargs: Any) -> Any:
        processed.append(sum(len(own) if isinstance(own, list) else 1 for own in images))
        return preprocess(images, *args, **kwargs)

    images.preprocess = count
    batch = trainer._generate_and_score_completions(rows_of(samples[:2], 4))
    assert sum(processed) == 10
    assert len(batch["pixel_values"]) == 2


def test_log_probabilities_of_rollouts_are_computed_a_batch_at_a_time(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    shape = {"gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 1}
    trainer = trainer_of(HCMGRPOTrainer, fresh_model, samples, tmp_path, shape)
    trainer.reward_funcs[0] = by_length
    rows: list[int] = []
    trainer.model.model.register_forward_hook(lambda _, args, kwargs, out: rows.append(len(out[0])), with_kwargs=True)
    trainer._prepare_inputs(rows_of(samples[:8], 4))
    assert [count for count in rows if count != 8] == [2] * 4, "eight prompts at once in rollouts, then two a batch"


def test_of_the_prompts_drawn_a_step_learns_from_as_many_as_it_has_that_have_a_spread(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    trainer = trainer_of(
        HCMGRPOTrainer, fresh_model, samples, tmp_path, {"max_steps": 2}, weights=[1 / 12] * 12, oversample=4
    )

    def reward(prompts: list[Any], **_: Any) -> list[float]:  # in three of eight groups
        return [float(index % 4 == 1 and index // 4 in (1, 4, 6)) for index in range(len(prompts))]

    trainer.reward_funcs[0] = reward
    seen: list[int] = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer.train()
    assert seen == [40, 10] * 2, "eight prompts drawn, two learnt from"


class Sampled:
    """Rollouts with the log-probabilities that another engine sampled them with."""

    def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        chosen = torch.Generator().manual_seed(4)
        ids = torch.randint(10, 30, (len(prompt_ids), 6), generator=chosen)
        return ids.tolist(), (torch.rand(len(prompt_ids), 6, generator=chosen) / 4 - 4).tolist()


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_correction_for_vllm_is_trls_without_a_pass_of_its_own(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, mode: str
) -> None:
    arguments = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.5}
    batches: dict[str, Batch] = {}
    for name, kind in (("stock", GRPOTrainer), ("ours", HCMGRPOTrainer)):
        sampled = type(name, (Sampled, kind), {})
        trainer = trainer_of(sampled, fresh_model, samples, tmp_path, arguments)
        trainer.use_vllm, trainer.current_gradient_accumulation_steps = True, 1
        compared: list[Any] = []
        trainer.vllm_generation = SimpleNamespace(compare=lambda *args, compared=compared: compared.append(args))
        trainer.reward_funcs[0] = by_length
        calls: list[int] = []
        trainer.model.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.model.train()
        torch.manual_seed(3)
        batches[name] = trainer._generate_and_score_completions(rows_of(samples[:2], 4))
        assert len(calls) == (1 if name == "stock" else 0)
        trainer._compute_loss(trainer.model, batches[name])
        differences = trainer._metrics["train"]["sampling/sampling_logp_difference/mean"]
        batches[name]["differences"] = differences[-1]
        assert len(compared) == (name == "ours")
    assert batches["ours"]["differences"] == pytest.approx(batches["stock"]["differences"], rel=1e-5)
    torch.testing.assert_close(
        batches["ours"]["importance_sampling_ratio"], batches["stock"]["importance_sampling_ratio"]
    )
    assert batches["ours"]["importance_sampling_ratio"].unique().numel() > 1


def test_a_reference_equal_to_the_model_moves_no_weight(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    save_model(*fresh_model(), tmp_path / "model")  # TRL loads the reference from there
    trainer = trainer_of(
        HCMGRPOTrainer,
        lambda: load_model(tmp_path / "model"),
        samples,
        tmp_path,
        {"beta": 0.1, "max_steps": 2, "gradient_accumulation_steps": 2},
    )
    trainer.reward_funcs[0] = lambda prompts, **_: [0.0] * len(prompts)
    before = weights_of(trainer.model)
    trainer.train()
    assert_equal(before, weights_of(trainer.model))
