"""Supervised fine-tuning on chains of thought with TRL; a perception warm-up first for a model built from nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from hardcase.config import SftConfig, TrainConfig
from hardcase.data.scenes import VOCABULARY
from hardcase.model.rows import build_lazy_dataset, build_sft_row, select_annotated
from hardcase.model.training import build_common_arguments, build_lora_config, train
from hardcase.model.warmup import NAMES, build_reading_rows, build_warm_up_rows
from hardcase.task.prompt import build_messages
from hardcase.task.sample import ASPECTS, Sample


def collect_vocabulary_texts(samples: Sequence[Sample], *, warm_up: bool) -> Iterator[str]:
    """Everything that a tokenizer made for these samples must read and write."""
    for aspect in ASPECTS:
        for part in build_messages(aspect)[0]["content"]:
            yield part.get("text", "")
    for sample in select_annotated(samples):
        yield sample.reasoning or ""
    if warm_up:
        yield " " + " ".join((*NAMES, *VOCABULARY))
        yield from NAMES


def fine_tune(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    config: SftConfig,
    seed: int,
    checkpoints: Path,
) -> list[dict[str, Any]]:
    """Train `model` in place: the phases of warm-up that are configured, then SFT on the annotated samples.

    Returns:
        The training log of all phases.
    """
    log = []
    for phase, warm_up, made in (
        ("warmup", config.warm_up, build_warm_up_rows),
        ("reading", config.reading, build_reading_rows),
    ):
        if warm_up is not None:
            rows = made(warm_up.steps * warm_up.batch_size, seed)
            arguments = _arguments(warm_up, seed, checkpoints / phase, sequential=True)
            log += train(SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor), phase)
    chosen = select_annotated(samples)
    rows = build_lazy_dataset(len(chosen), lambda index: build_sft_row(chosen[index]))
    arguments = _arguments(config, seed, checkpoints / "sft", sequential=False)
    trainer = SFTTrainer(
        model, arguments, train_dataset=rows, processing_class=processor, peft_config=build_lora_config(config)
    )
    return log + train(trainer, "sft")


def _arguments(config: TrainConfig, seed: int, folder: Path, *, sequential: bool) -> TrlSftConfig:
    return TrlSftConfig(
        **build_common_arguments(config, seed, folder),
        max_length=None,  # a cut would take image tokens from their pictures
        train_sampling_strategy="sequential" if sequential else "random",
    )
