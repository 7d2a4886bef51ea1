"""Generate rollouts with each prompt computed once: one pass over five images and the question for k completions.

The completions of a prompt grow side by side in one row after it, and a mask hides each from the others. So the
prompt's key-value cache is stored and read once too. Stock generation does all of this for each completion.

Shapes: B prompts, G completions each, P prompt tokens (padded left), C completion tokens (padded right), V vocabulary
size, L tokens in the cache.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.data.images import decode_image
from hardcase.task.prompt import build_messages
from hardcase.task.sample import Sample


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients, enter evaluation mode, and choose attention that takes any mask; all of it is restored."""
    training, config = model.training, model.config.get_text_config()
    attention = config._attn_implementation
    model.eval()
    config._attn_implementation = "sdpa"
    try:
        with torch.no_grad():
            yield
    finally:
        config._attn_implementation = attention
        model.train(training)


def generate_completions(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    generations: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample completions with each prompt computed once.

    `inputs` are `input_ids` and `attention_mask` (B, P), padded left, and `pixel_values`. Temperature 0 takes the
    likeliest token.

    Returns:
        Completions (B·G, C), those of a prompt adjacent, filled with the padding token after their end.
    """
    config = model.generation_config
    (prompts, prompt_tokens), device = inputs["input_ids"].shape, inputs["input_ids"].device
    ends = torch.as_tensor(config.eos_token_id, device=device).reshape(-1)
    with evaluation_mode(model):
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        logits_BGV = output.logits.repeat(1, generations, 1)
        visible_B1GL = inputs["attention_mask"].bool()[:, None, None].expand(-1, 1, generations, -1)
        itself_B1GG = torch.eye(generations, dtype=torch.bool, device=device).expand(prompts, 1, -1, -1)
        done_BG = torch.zeros(prompts, generations, dtype=torch.bool, device=device)
        tokens: list[Tensor] = []
        while len(tokens) < max_new_tokens and not done_BG.all():
            if tokens:
                visible_B1GL = torch.cat([visible_B1GL, itself_B1GG], -1)
                logits_BGV = model(
                    input_ids=tokens[-1],
                    attention_mask=visible_B1GL,
                    position_ids=torch.full_like(tokens[-1], prompt_tokens + len(tokens) - 1),
                    past_key_values=output.past_key_values,
                    use_cache=True,
                ).logits
            # The image token stands for an image that was not given.
            logits_BGV[..., model.config.image_token_id] = -torch.inf
            token_BG = _choose_tokens(logits_BGV, temperature, generator).masked_fill(done_BG, config.pad_token_id)
            tokens.append(token_BG)
            done_BG |= torch.isin(token_BG, ends)
    return torch.stack(tokens, -1).flatten(0, 1)


def _choose_tokens(logits_BGV: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits_BGV.argmax(-1)
    probabilities_BGV = torch.softmax(logits_BGV.float() / temperature, -1)
    return torch.multinomial(probabilities_BGV.flatten(0, 1), 1, generator=generator).view(probabilities_BGV.shape[:2])


def render_prompts(processor: ProcessorMixin, samples: Sequence[Sample]) -> tuple[list[str], list[list[Image]]]:
    """Return the prompt of each sample as text, and its decoded images."""
    messages = [build_messages(sample.aspect) for sample in samples]
    texts = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:  # decoders release the GIL
        images = pool.map(_decode_images, (tuple(sample.images) for sample in samples))  # which are read in this thread
        return texts, list(images)


def _decode_images(encoded: tuple[bytes, ...]) -> list[Image]:
    return [decode_image(data) for data in encoded]


def build_prompt_inputs(
    processor: ProcessorMixin, samples: Sequence[Sample], device: torch.device
) -> dict[str, Tensor]:
    """Build the inputs of `generate_completions`: prompts padded left, images decoded."""
    texts, images = render_prompts(processor, samples)
    batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    return {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "pixel_values")}
