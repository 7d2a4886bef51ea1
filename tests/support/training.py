"""Trainers of TRL and ours on a small model, and what to compare of them."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from hardcase.data.images import decode_image
from hardcase.data.scenes import draw_scene, encode_image
from hardcase.model.groups import Batch, take
from hardcase.model.rows import build_lazy_dataset, build_prompt_row
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.task.reward import dpa_reward
from hardcase.task.sample import ASPECTS, Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def trainer_of(
    kind: type[GRPOTrainer],
    build: Build,
    samples: list[Sample],
    folder: Path,
    arguments: dict[str, Any] | None = None,
    **others: Any,
) -> GRPOTrainer:
    model, processor = build()
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "report_to": "none",
        "remove_unused_columns": False,
        "bf16": False,
    }
    rows = build_lazy_dataset(len(samples), lambda index: build_prompt_row(samples[index]))
    args = GRPOConfig(**defaults | (arguments or {}))
    return kind(model, dpa_reward, args=args, train_dataset=rows, processing_class=processor, **others)


def tiled(sample: Sample) -> Sample:
    """The sample with an original twice as wide as high, which the processor cuts into two tiles and a thumbnail."""
    original = decode_image(sample.images[0]).resize((64, 32))
    return replace(sample, images=(encode_image(original, ".png"), *sample.images[1:]))


def shuffle(batch: Batch) -> Batch:
    return take(batch, torch.randperm(len(batch["group"])))


def repeat_images(batch: Batch) -> Batch:
    """The batch in the form of TRL's trainer, which has the tiles of its prompt for every completion."""
    tiles = [batch["pixel_values"][number] for number in batch["group"].tolist()]
    return {**batch, "pixel_values": torch.cat(tiles), "num_images": [5] * len(tiles), "num_tiles": [*map(len, tiles)]}


def assert_loss_equals_trls(build: Callable[[type[GRPOTrainer]], GRPOTrainer], batch: dict[str, Any]) -> None:
    """Loss, log-probabilities and every gradient, within 1e-5."""
    results = {}
    for name, kind in (("stock", GRPOTrainer), ("ours", HCMGRPOTrainer)):
        trainer = build(kind)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        seen: list[torch.Tensor] = []
        whole = trainer._get_per_token_logps_and_entropies

        def watched(*args: Any, whole: Any = whole, seen: list[torch.Tensor] = seen, **kwargs: Any) -> Any:
            found = whole(*args, **kwargs)
            seen.append(found[0])
            return found

        trainer._get_per_token_logps_and_entropies = watched
        loss = trainer._compute_loss(trainer.model, repeat_images(batch) if name == "stock" else dict(batch))
        loss.backward()
        gradients = {key: weight.grad for key, weight in trainer.model.named_parameters() if weight.grad is not None}
        results[name] = loss.detach(), seen[0][batch["completion_mask"].bool()].detach(), gradients
    stock, shared = results["stock"], results["ours"]
    assert bool(stock[0]), "a loss of zero shows nothing"
    torch.testing.assert_close(shared[0], stock[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(shared[1], stock[1], rtol=1e-5, atol=1e-5)
    assert shared[2].keys() == stock[2].keys()
    largest = max(float(gradient.abs().max()) for gradient in stock[2].values())
    for key, gradient in stock[2].items():
        # A bias of attention's keys has no gradient but rounding.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(shared[2][key] / scale, gradient / scale, rtol=0, atol=1e-5, msg=key)


def batch_of(trainer: GRPOTrainer, samples: list[Sample]) -> dict[str, Any]:
    """Rollouts of two prompts as TRL hands them to the loss, made by another policy than the trainer's."""
    trainer.model.train()
    torch.manual_seed(3)
    batch = trainer._generate_and_score_completions(rows_of(samples[:2], 4))
    batch["completion_mask"] = (torch.arange(6) < torch.tensor([6, 3, 5, 1, 6, 2, 4, 6])[:, None]).long()
    batch["advantages"] = torch.linspace(-1, 1, 8)
    batch["old_per_token_logps"] = torch.randn(8, 6) / 10 - 4
    return shuffle(batch)


def by_length(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that random texts earn unequally."""
    return [float(len(completion[0]["content"]) % 3) for completion in completions]


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def rows_of(samples: list[Sample], copies: int) -> list[dict[str, Any]]:
    return [build_prompt_row(sample) for sample in samples for _ in range(copies)]


def draw_samples(count: int) -> list[Sample]:
    """Drawn samples, the aspects in turn, each in a group of its own."""
    rng = random.Random(0)
    drawn = [draw_scene(rng, aspect=ASPECTS[index % 4]) for index in range(count)]
    return [
        Sample(
            id=f"s{index}",
            aspect=scene.aspect,
            truth=frozenset(scene.truth),
            reasoning=scene.reasoning,
            group=f"g{index}",
            images=tuple(encode_image(image, ".png") for image in scene.images),
        )
        for index, scene in enumerate(drawn)
    ]
