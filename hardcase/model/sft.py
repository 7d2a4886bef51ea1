"""Fine-tune a model on chains of thought with TRL, after a perception warm-up where one is configured."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from hardcase.config import SftConfig, TrainConfig
from hardcase.config.base import Destination
from hardcase.data.scenes import VOCABULARY
from hardcase.lifetime import STOP
from hardcase.model.rows import build_lazy_dataset, build_sft_row
from hardcase.model.training import build_common_arguments, build_lora_config, freeze, train
from hardcase.model.trl_settings import build_arguments
from hardcase.model.validation import Validation, measure_exact_match
from hardcase.model.warmup import NAMES, build_reading_rows, build_warm_up_rows
from hardcase.task.prompt import build_messages
from hardcase.task.sample import ASPECTS, Sample


def collect_vocabulary_texts(samples: Sequence[Sample], *, warm_up: bool) -> Iterator[str]:
    """Yield all texts that a tokenizer built for these samples must be able to encode."""
    for aspect in ASPECTS:
        for part in build_messages(aspect)[0]["content"]:
            yield part.get("text", "")
    for sample in samples:
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
    held_out: Sequence[Sample] = (),
    to: Destination | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, in the configured phases of warm-up and on the annotated samples; return the log.

    With `config.validate_steps` the annotated samples of `held_out` validate it. `to` is where metrics are shown.
    """

    def build_rows_of(samples: Sequence[Sample]) -> Dataset:
        annotated = [at for at, sample in enumerate(samples) if sample.reasoning is not None]
        return build_lazy_dataset(len(annotated), lambda index: build_sft_row(samples[annotated[index]]))

    log = []
    for phase, section, warm_up, build_rows in (
        ("warmup", "sft.warm_up", config.warm_up, build_warm_up_rows),
        ("reading", "sft.reading", config.reading, build_reading_rows),
    ):
        if warm_up is not None:
            rows = build_rows(warm_up.steps * warm_up.batch_size, seed)
            arguments = build_sft_arguments(warm_up, seed, checkpoints / phase, section, sequential=True)
            freeze(model, warm_up)
            trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
            log += train(trainer, phase, checkpoints / STOP, to=to)
    arguments = build_sft_arguments(config, seed, checkpoints / "sft")
    freeze(model, config)
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=build_rows_of(samples),
        eval_dataset=build_rows_of(held_out) if config.validate_steps else None,
        processing_class=processor,
        peft_config=build_lora_config(config, model, "sft"),
    )
    validation = None
    if config.validate_steps:
        tokens = config.validate_tokens
        answer = partial(measure_exact_match, trainer, held_out, config.batch_size, tokens) if tokens else None
        validation = Validation(trainer, config, answer)
    return log + train(trainer, "sft", checkpoints / STOP, validation, to)


def build_sft_arguments(
    config: TrainConfig, seed: int, folder: Path, section: str = "sft", *, sequential: bool = False
) -> TrlSftConfig:
    """Build TRL's arguments of a phase of SFT, configured in `section`."""
    own = {
        **build_common_arguments(config, seed, folder),
        "max_length": None,  # truncation would separate image tokens from their images
        "train_sampling_strategy": "sequential" if sequential else "random",
    }
    return build_arguments(TrlSftConfig, own, config.trl, section)
