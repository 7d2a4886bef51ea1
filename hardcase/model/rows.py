"""Build the rows of TRL's trainers on demand, so that images are decoded one batch at a time."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from hardcase.data.images import decode_image
from hardcase.errors import HardcaseError
from hardcase.task.prompt import build_messages, format_completion
from hardcase.task.sample import Sample

Row = dict[str, Any]


def build_lazy_dataset(count: int, build_row: Callable[[int], Row]) -> Dataset:
    """Build a dataset of `count` rows, where the pure function `build_row` builds the i-th whenever it is read."""

    def build_batch(indices: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [build_row(index) for index in indices["row"]]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return Dataset.from_dict({"row": list(range(count))}).with_transform(build_batch)


def build_prompt_row(sample: Sample) -> Row:
    """Build a sample's row for generation and GRPO: prompt, five images, truth."""
    return {
        "prompt": build_messages(sample.aspect),
        "images": [decode_image(data) for data in sample.images],
        "answer": sorted(sample.truth),
        "aspect": sample.aspect,
        "id": sample.id,
    }


def build_sft_row(sample: Sample) -> Row:
    """Build a sample's row for supervised fine-tuning, with its annotated chain of thought."""
    if sample.reasoning is None:
        raise HardcaseError(f"sample {sample.id}: has no `reasoning`, so SFT cannot learn from it")
    return {
        "prompt": build_messages(sample.aspect),
        "completion": build_assistant_turn(format_completion(sample.reasoning, sample.truth)),
        "images": [decode_image(data) for data in sample.images],
    }


def build_assistant_turn(text: str) -> list[Row]:
    """Return `text` as a turn of the assistant."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
