"""Answers by vLLM: those of our own engine, on the same prompts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, InternVLProcessor

from hardcase.config import EvaluateConfig
from hardcase.model.engine import LocalEngine, generate_answers, open_engine
from hardcase.model.internvl import load_model
from hardcase.model.rollout import build_prompt_inputs
from hardcase.model.vllm import VllmEngine
from hardcase.task.sample import Sample
from tests.vllm.conftest import widen

CONFIG = EvaluateConfig(engine="vllm", vllm_dtype="float32", max_new_tokens=48)
GREEDY: dict[str, Any] = {"copies": 1, "batch_size": 8, "temperature": 0, "seed": 0, "what": "test"}


@pytest.fixture(scope="module")
def engine(folder: Path) -> VllmEngine:
    engine = open_engine(CONFIG, folder, seed=0)
    assert isinstance(engine, VllmEngine)
    return engine


def test_a_saved_model_opens_with_the_stock_classes(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is InternVLProcessor
    assert type(processor.video_processor).__name__ == "InternVLVideoProcessor"
    assert processor.image_processor.max_patches == 3
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "InternVLForConditionalGeneration"


def test_greedy_answers_equal_those_of_our_engine(engine: VllmEngine, folder: Path, samples: list[Sample]) -> None:
    local = LocalEngine(*load_model(folder))
    for length in (4, 48):
        answers = generate_answers(engine, samples, max_new_tokens=length, **GREEDY)
        assert answers == generate_answers(local, samples, max_new_tokens=length, **GREEDY)
        assert any(one.cut for row in answers for one in row) == (length == 4)


def test_prompts_and_their_log_probabilities_equal_ours(
    engine: VllmEngine, folder: Path, samples: list[Sample]
) -> None:
    """Images of one tile, and of two with a thumbnail."""
    sampling = engine.vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    model, processor = load_model(folder)
    for sample, output in zip(
        samples, engine.llm.generate(engine.prepare(samples), sampling, use_tqdm=False), strict=True
    ):
        inputs = build_prompt_inputs(processor, [sample], model.device)
        ids = inputs["input_ids"][0]
        assert output.prompt_token_ids == ids.tolist()
        with torch.no_grad():
            expected = model(**inputs).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        ours = [
            scores[token].logprob for scores, token in zip(output.prompt_logprobs[1:], ids[1:].tolist(), strict=True)
        ]
        torch.testing.assert_close(torch.tensor(ours), expected, atol=2e-5, rtol=0)


def test_memory_is_reserved_for_the_longest_prompt_and_its_answer(engine: VllmEngine, samples: list[Sample]) -> None:
    """VLLM would reserve it for the model's whole context, and for videos."""
    widest = [replace(sample, images=tuple(widen(image, 3) for image in sample.images)) for sample in samples[:4]]
    tokens = build_prompt_inputs(engine.processor, widest, torch.device("cpu"))["input_ids"].size(1)
    config = engine.llm.llm_engine.model_config
    assert config.max_model_len == tokens + CONFIG.max_new_tokens
    assert config.multimodal_config.get_limit_per_prompt("image") == 5
    assert config.multimodal_config.get_limit_per_prompt("video") == 0


def test_an_image_that_was_not_given_is_never_answered(
    change_model: Callable[[Callable[[Any], None]], Path], samples: list[Sample]
) -> None:
    """The likeliest token of all, which stands for an image, would be in every answer."""

    def favour_image_token(model: Any) -> None:
        rows = model.get_input_embeddings().weight  # the output layer's too; the input has features in this place
        image = model.config.image_token_id
        inputs = build_prompt_inputs(load_model(model.name_or_path)[1], samples[:1], model.device)
        likeliest = model(**inputs).logits[0, -1].argmax()
        rows[image] = 2 * rows[likeliest]
        assert model(**inputs).logits[0, -1].argmax() == image

    folder = change_model(favour_image_token)
    engine, local = open_engine(CONFIG, folder, seed=0), LocalEngine(*load_model(folder))
    answers = generate_answers(engine, samples[:4], max_new_tokens=8, **GREEDY)
    assert answers == generate_answers(local, samples[:4], max_new_tokens=8, **GREEDY)


def test_each_prompt_has_its_own_random_numbers(engine: VllmEngine, samples: list[Sample]) -> None:
    """Equal noise would make the rollouts of a batch succeed and fail together."""
    sampled = {**GREEDY, "copies": 4, "temperature": 1.0, "max_new_tokens": 48}
    twice = [samples[0], samples[0]]
    first, second = generate_answers(engine, twice, **sampled)
    assert first != second
    assert [first, second] == generate_answers(engine, twice, **sampled), "the seed decides"
