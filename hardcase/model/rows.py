"""Rows for TRL's trainers, made when they are asked for: pictures are decoded one batch at a time."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from hardcase.data.images import decode_image
from hardcase.task.prompt import build_messages, format_completion
from hardcase.task.sample import Sample

Row = dict[str, Any]


def build_lazy_dataset(count: int, row: Callable[[int], Row]) -> Dataset:
    """A dataset of `count` rows; `row(i)` makes the i-th whenever it is read, and must be a pure function."""

    def batch(indices: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [row(index) for index in indices["row"]]
        return {key: [each[key] for each in made] for key in made[0]}

    return Dataset.from_dict({"row": list(range(count))}).with_transform(batch)


def build_prompt_row(sample: Sample) -> Row:
    """What generation and GRPO need of a sample: prompt, five pictures, truth."""
    return {
        "prompt": build_messages(sample.aspect),
        "images": [decode_image(data) for data in sample.images],
        "answer": sorted(sample.truth),
        "aspect": sample.aspect,
        "id": sample.id,
    }


def build_sft_row(sample: Sample) -> Row:
    """A sample with its annotated chain of thought, for supervised fine-tuning."""
    assert sample.reasoning is not None
    return {
        "prompt": build_messages(sample.aspect),
        "completion": build_assistant_turn(format_completion(sample.reasoning, sample.truth)),
        "images": [decode_image(data) for data in sample.images],
    }


def build_assistant_turn(text: str) -> list[Row]:
    """`text` as the assistant's turn."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def select_annotated(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that carry a chain of thought."""
    return [sample for sample in samples if sample.reasoning is not None]
