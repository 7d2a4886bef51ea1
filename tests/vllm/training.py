"""GRPO with vLLM beside it, in this process or in each of several."""

# ruff: noqa: I001 - the first of our imports sets up vLLM
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm.conftest import draw_wide_samples

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hardcase.config import GrpoConfig, LoraConfig
from hardcase.data.cases import judge
from hardcase.data.completions import Completion
from hardcase.model import grpo
from hardcase.model.internvl import gather_weights, load_model
from hardcase.model.vllm import VllmRollouts
from hardcase.task.sample import Sample

CONFIG = GrpoConfig(
    steps=4,
    batch_size=8,
    generations=4,
    learning_rate=1e-3,
    max_new_tokens=24,
    threads=1,
    save_steps=2,
    engine="vllm",
    vllm_dtype="float32",
)
LORA = LoraConfig(rank=4, alpha=8)
Look = Callable[[VllmRollouts, list[list[int]], Any, Any], None]


def reward_lengths(completions: list[Any], **_: Any) -> list[float]:
    """Return rewards that differ in each group, so that each step moves weights."""
    return [len(str(text)) % 7 / 7 for text in completions]


def train(
    folder: Path,
    samples: list[Sample],
    checkpoints: Path,
    edit: Callable[[Any], None] = lambda model: None,
    dtype: str = "float32",
    **settings: Any,
) -> PreTrainedModel:
    model, processor = load_model(folder, dtype=dtype)
    with torch.no_grad():
        edit(model)
    cases = [judge(sample.id, sample.truth, [Completion("", cut=True)], 0.5) for sample in samples]
    grpo.train_grpo(model, processor, samples, cases, CONFIG.model_copy(update=settings), 0, checkpoints)
    return model


@torch.no_grad()
def score(rollouts: VllmRollouts, prompt: list[int], images: Any, completion: list[int]) -> Tensor:
    """Return the log-probabilities of a completion, by a plain pass over it alone; no image token is sampled."""
    model, processor = rollouts.model, rollouts.processing_class
    pixels = processor.image_processor(images, crop_to_patches=True, return_tensors="pt")["pixel_values"]
    with gather_weights(model):
        logits = model(input_ids=torch.tensor([prompt + completion]), pixel_values=pixels).logits[0]
    logits = logits[len(prompt) - 1 : -1]
    logits[:, processor.image_token_id] = -torch.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def find_largest_difference(rollouts: VllmRollouts, prompts: list[list[int]], images: Any, result: Any) -> float:
    """Return the most that a log-probability of vLLM differs from that of the model in training."""
    read, completions, scores, _ = result
    assert read == prompts
    return max(
        float((score(rollouts, prompt, own, list(completion)) - torch.tensor(theirs)[:, 0]).abs().max())
        for prompt, own, completion, theirs in zip(prompts, images, completions, scores, strict=True)
    )


def run(config: GrpoConfig, scratch: Path, model: Path, out: Path) -> None:
    """Train in one of several processes, and write the largest difference of each step."""
    differences: list[float] = []
    generate = VllmRollouts.generate

    def watch(self: VllmRollouts, prompts: Any, images: Any, **others: Any) -> Any:
        result = generate(self, prompts, images, **others)
        differences.append(find_largest_difference(self, prompts, images, result))
        (out / f"{self.accelerator.process_index}.json").write_text(json.dumps(differences))
        return result

    VllmRollouts.generate, grpo.dpa_reward = watch, reward_lengths
    train(model, draw_wide_samples(), scratch, **dict(config))
