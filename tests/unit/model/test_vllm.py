"""What vLLM is given, as far as it shows without vLLM. With it: tests/vllm."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import EvaluateConfig
from hardcase.data.images import decode_image
from hardcase.data.scenes import encode_image
from hardcase.model.rollout import build_prompt_inputs, render_prompts
from hardcase.model.vllm import build_options, collapse_images
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
CPU = torch.device("cpu")


def widen(sample: Sample, tiles: int) -> Sample:
    wide = [decode_image(image).resize((32 * tiles, 32)) for image in sample.images]
    return replace(sample, images=tuple(encode_image(image, ".png") for image in wide))


@pytest.mark.parametrize("tiles", [1, 3])
def test_vllm_is_given_one_token_an_image(fresh_model: Build, samples: list[Sample], tiles: int) -> None:
    """It expands each image token, and so would expand an image again."""
    _, processor = fresh_model()
    processor.image_processor.max_patches = 3
    sample = widen(samples[0], tiles)
    text = render_prompts(processor, [sample])[0]
    expanded = build_prompt_inputs(processor, [sample], CPU)["input_ids"][0].tolist()
    collapsed = collapse_images(expanded, processor)
    assert len(collapsed) < len(expanded)
    assert collapsed == processor.tokenizer(text)["input_ids"][0]
    assert collapse_images(collapsed, processor) == collapsed


@pytest.mark.parametrize("tiles", [1, 3])
def test_vllm_has_room_for_the_longest_prompt_and_its_answer_within_the_context(
    fresh_model: Build, samples: list[Sample], tiles: int
) -> None:
    model, processor = fresh_model()
    processor.image_processor.max_patches = tiles
    widest = [widen(sample, tiles) for sample in samples[:4]]
    tokens = build_prompt_inputs(processor, widest, CPU)["input_ids"].size(1)
    options = build_options(EvaluateConfig(max_new_tokens=9), model.config, processor)
    assert options["max_model_len"] == tokens + 9
    context = model.config.text_config.max_position_embeddings
    assert build_options(EvaluateConfig(max_new_tokens=context), model.config, processor)["max_model_len"] == context
