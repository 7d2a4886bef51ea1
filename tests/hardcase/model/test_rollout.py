from collections.abc import Callable

import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.model.rollout import answers, generate, prompt_inputs
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def test_greedy_words_equal_stock_generation_on_ragged_prompts(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    inputs = prompt_inputs(processor, samples, model.device)
    assert (inputs["attention_mask"] == 0).any(), "the prompts must differ in length for this to show anything"
    stock = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].size(1) :]
    ours = generate(model, inputs, 1, 12, temperature=0)
    assert torch.equal(ours, stock[:, : ours.size(1)])


def test_every_copy_of_a_prompt_starts_from_the_same_prompt(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    inputs = prompt_inputs(processor, samples[:3], model.device)
    once = generate(model, inputs, 1, 8, temperature=0)
    thrice = generate(model, inputs, 3, 8, temperature=0)
    assert torch.equal(thrice, once.repeat_interleave(3, 0))


def test_a_batch_is_sampled_alike_wherever_the_work_begins(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()

    def texts(batch_size: int) -> list[list[str]]:
        rollouts = answers(
            model,
            processor,
            samples[:4],
            generations=2,
            batch_size=batch_size,
            max_new_tokens=6,
            temperature=1.0,
            seed=3,
            what="test",
        )
        return [text for _, text in rollouts]

    assert texts(2) == texts(2)
    assert texts(2)[:2] == texts(2)[:2] != texts(2)[2:]


def test_the_models_mode_is_left_as_found(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    model.train()
    generate(model, prompt_inputs(processor, samples[:1], model.device), 2, 3, temperature=1.0)
    assert model.training
