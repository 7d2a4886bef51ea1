from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.model import rollout
from hardcase.model.rollout import build_prompt_inputs, generate_completions
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def test_greedy_words_equal_stock_generation_on_ragged_prompts(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    inputs = build_prompt_inputs(processor, samples, model.device)
    assert (inputs["attention_mask"] == 0).any(), "the prompts must differ in length for this to show anything"
    stock = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].size(1) :]
    ours = generate_completions(model, inputs, 1, 12, temperature=0)
    assert torch.equal(ours, stock[:, : ours.size(1)])


def test_every_copy_of_a_prompt_starts_from_the_same_prompt(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    inputs = build_prompt_inputs(processor, samples[:3], model.device)
    once = generate_completions(model, inputs, 1, 8, temperature=0)
    thrice = generate_completions(model, inputs, 3, 8, temperature=0)
    assert torch.equal(thrice, once.repeat_interleave(3, 0))


def test_completions_of_a_prompt_do_not_see_each_other(
    fresh_model: Build, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What predicts each word is what stock gives for that prompt and completion alone."""
    model, processor = fresh_model()
    inputs = build_prompt_inputs(processor, samples[:2], model.device)
    assert (inputs["attention_mask"] == 0).any(), "the prompts must differ in length for this to show anything"
    tokens_BGC = torch.randint(12, len(processor.tokenizer), (2, 3, 5), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(logits.clone())
        return tokens_BGC[..., len(seen) - 1]

    monkeypatch.setattr(rollout, "_choose_tokens", choose)
    generate_completions(model, inputs, 3, 5, temperature=1.0)
    alone = {key: value.repeat_interleave(3, 0) for key, value in inputs.items() if key != "pixel_values"}
    alone["input_ids"] = torch.cat([alone["input_ids"], tokens_BGC.flatten(0, 1)], 1)
    alone["attention_mask"] = torch.cat([alone["attention_mask"], torch.ones(6, 5, dtype=torch.long)], 1)
    pictures = torch.stack(inputs["pixel_values"].chunk(2)).repeat_interleave(3, 0).flatten(0, 1)
    with torch.no_grad():
        stock = model.eval()(**alone, pixel_values=pictures, logits_to_keep=6).logits[:, :-1]
    ours = torch.stack(seen, 2).flatten(0, 1)
    stock[..., model.config.image_token_id] = -torch.inf
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_the_model_keeps_its_mode(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    model.train()
    generate_completions(model, build_prompt_inputs(processor, samples[:1], model.device), 2, 3, temperature=1.0)
    assert model.training
