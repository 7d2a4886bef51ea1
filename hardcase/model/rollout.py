"""Rollouts with the prompt computed once: one pass over five pictures and the question serves all k completions.

The completions of a prompt start from copies of its key-value cache (`batch_repeat_interleave`, transformers
`cache_utils.py`). Stock generation runs the prompt once for each of them.

Shapes: B prompts, G completions each, P prompt tokens (padded left), C completion tokens (padded right), V words.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.data.images import decode
from hardcase.progress import track
from hardcase.task.prompt import messages
from hardcase.task.sample import Sample


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, evaluation mode; the mode found is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def generate(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    generations: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample completions, the prompts computed once.

    Args:
        model: a stock image-text-to-text model.
        inputs: `input_ids` and `attention_mask` (B, P), `pixel_values`; prompts padded left.
        generations: G.
        max_new_tokens: C at most.
        temperature: 0 takes the likeliest word.
        generator: of the sampling; torch's own when None.

    Returns:
        Completions (B·G, C), the G of a prompt side by side, filled with the padding token after their end.
    """
    config = model.generation_config
    ends = torch.as_tensor(config.eos_token_id, device=inputs["input_ids"].device).reshape(-1)
    with evaluating(model):
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        if generations > 1:
            cache.batch_repeat_interleave(generations)
        mask_GP = inputs["attention_mask"].repeat_interleave(generations, 0)
        position_G1 = mask_GP.sum(1, keepdim=True)
        logits_GV = output.logits[:, -1].repeat_interleave(generations, 0)
        done_G = torch.zeros(len(logits_GV), dtype=torch.bool, device=logits_GV.device)
        words: list[Tensor] = []
        while len(words) < max_new_tokens and not done_G.all():
            if words:
                mask_GP = torch.cat([mask_GP, torch.ones_like(mask_GP[:, :1])], 1)
                logits_GV = model(
                    input_ids=words[-1][:, None],
                    attention_mask=mask_GP,
                    position_ids=position_G1,
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
                position_G1 = position_G1 + 1
            # It would ask for a picture that no one gave.
            logits_GV[:, model.config.image_token_id] = -torch.inf
            word_G = _choose(logits_GV, temperature, generator).masked_fill(done_G, config.pad_token_id)
            words.append(word_G)
            done_G |= torch.isin(word_G, ends)
    return torch.stack(words, 1)


def _choose(logits_GV: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits_GV.argmax(-1)
    chances_GV = torch.softmax(logits_GV.float() / temperature, -1)
    return torch.multinomial(chances_GV, 1, generator=generator)[:, 0]


def prompt_inputs(processor: ProcessorMixin, samples: Sequence[Sample], device: torch.device) -> dict[str, Tensor]:
    """The batch that `generate` takes: prompts padded left, pictures decoded."""
    prompts = processor.apply_chat_template(
        [messages(sample.aspect) for sample in samples], add_generation_prompt=True, tokenize=False
    )
    images = [[decode(data) for data in sample.images] for sample in samples]
    batch = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
    keys = ("input_ids", "attention_mask", "pixel_values")
    return {key: batch[key].to(device) for key in keys}


def answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    generations: int,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    what: str,
) -> Iterator[tuple[Sample, list[str]]]:
    """Every sample with its `generations` completions as text, in the order given.

    Args:
        model: judge of the samples.
        processor: the model's.
        samples: what to judge.
        generations: completions a sample.
        batch_size: samples at a time.
        max_new_tokens: longest completion.
        temperature: 0 for the likeliest answer.
        seed: of the sampling; each batch has its own stream, so work can go on from any batch.
        what: the name of this work in progress reports.
    """
    tokenizer: Any = processor.tokenizer
    starts = range(0, len(samples), batch_size)
    for start in track(starts, what, len(starts)):
        batch = samples[start : start + batch_size]
        generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + start)
        inputs = prompt_inputs(processor, batch, model.device)
        ids = generate(model, inputs, generations, max_new_tokens, temperature, generator)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for index, sample in enumerate(batch):
            yield sample, texts[index * generations : (index + 1) * generations]
