"""GRPO with vLLM beside the training: the prompts, the weights and the log-probabilities of both are the same."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory

from hardcase.config import GrpoConfig, LoraConfig
from hardcase.data.cases import judge
from hardcase.data.completions import Completion
from hardcase.errors import HardcaseError
from hardcase.model import vllm
from hardcase.model.grpo import train_grpo
from hardcase.model.internvl import load_model
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


@pytest.fixture(autouse=True)
def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that differ in each group, so that each step moves weights."""
    monkeypatch.setattr(
        "hardcase.model.grpo.dpa_reward", lambda completions, **_: [len(str(text)) % 7 / 7 for text in completions]
    )


@pytest.fixture(autouse=True)
def own_process_group() -> Iterator[None]:
    """Frees what vLLM has once in a process, so that the next trainer may build its own."""
    yield
    cleanup_dist_env_and_memory()


@pytest.fixture
def at_each_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Look], None]:
    """Has a function called with the prompts of each step, their images, and what vLLM completed."""
    generate = VllmRollouts.generate

    def insert(look: Look) -> None:
        def generate_and_look(self: VllmRollouts, prompts: Any, images: Any, **others: Any) -> Any:
            result = generate(self, prompts, images, **others)
            look(self, prompts, images, result)
            return result

        monkeypatch.setattr(VllmRollouts, "generate", generate_and_look)

    return insert


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
    train_grpo(model, processor, samples, cases, CONFIG.model_copy(update=settings), 0, checkpoints)
    return model


@torch.no_grad()
def score(rollouts: VllmRollouts, prompt: list[int], images: Any, completion: list[int]) -> Tensor:
    """Return the log-probabilities of a completion, by a plain pass over it alone; no image token is sampled."""
    model, processor = rollouts.model, rollouts.processing_class
    pixels = processor.image_processor(images, crop_to_patches=True, return_tensors="pt")["pixel_values"]
    logits = model(input_ids=torch.tensor([prompt + completion]), pixel_values=pixels).logits[0, len(prompt) - 1 : -1]
    logits[:, processor.image_token_id] = -torch.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("lora", [None, LORA])
def test_log_probabilities_equal_the_trained_models_at_every_step(
    lora: LoraConfig | None,
    folder: Path,
    samples: list[Sample],
    tmp_path: Path,
    at_each_step: Callable[[Look], None],
) -> None:
    """Two samples come back in each step, so features of images that earlier weights made would show."""
    weights: list[Tensor] = []
    differences: list[float] = []

    def collect(self: VllmRollouts, prompts: list[list[int]], images: Any, result: Any) -> None:
        weights.append(torch.cat([weight.detach().flatten() for weight in self.model.parameters()]))
        read, completions, scores, _ = result
        assert read == prompts
        for prompt, own, completion, theirs in zip(prompts, images, completions, scores, strict=True):
            ours = score(self, prompt, own, list(completion))
            differences.append(float((ours - torch.tensor(theirs)[:, 0]).abs().max()))

    at_each_step(collect)
    train(folder, samples[:2], tmp_path, lora=lora)
    assert len(differences) == 4 * CONFIG.batch_size
    assert not any(one.equal(other) for one, other in pairwise(weights))
    assert max(differences) < 1e-4


def test_a_prompt_is_one_request_for_all_its_completions(
    folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of its images is processed once for each completion."""
    requests: list[tuple[Any, Any]] = []
    generate = LLM.generate

    def watch(self: LLM, prompts: Any, sampling_params: Any, **options: Any) -> Any:
        requests.append((prompts, sampling_params))
        return generate(self, prompts, sampling_params, **options)

    monkeypatch.setattr(LLM, "generate", watch)
    train(folder, samples[:4], tmp_path, steps=1)
    ((prompts, sampling),) = requests
    assert [len(prompt["multi_modal_data"]["image"]) for prompt in prompts] == [5, 5]
    assert sampling.n == 4


def test_an_image_that_was_not_given_is_not_drawn(
    folder: Path,
    samples: list[Sample],
    tmp_path: Path,
    at_each_step: Callable[[Look], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model would take it for a place of features, of which there are none."""
    drawn: list[int] = []

    def favour_image_token(model: Any) -> None:
        rows = model.get_input_embeddings().weight  # the output layer's too; the input has features in this place
        rows[model.config.image_token_id] = 2 * rows[model.generation_config.eos_token_id]

    # The model's own log-probabilities are those of a policy that draws the token.
    monkeypatch.setattr(VllmRollouts, "compare", lambda *_: None)
    at_each_step(lambda _, __, ___, result: drawn.extend(token for row in result[1] for token in row))
    model = train(folder, samples, tmp_path, favour_image_token, steps=1)
    assert drawn
    assert model.config.image_token_id not in drawn


def test_training_resumes_to_the_same_bytes(
    folder: Path, samples: list[Sample], tmp_path: Path, at_each_step: Callable[[Look], None]
) -> None:
    whole = train(folder, samples, tmp_path / "whole").state_dict()
    steps: list[int] = []

    def stop(*_: Any) -> None:
        steps.append(len(steps))
        if len(steps) == 4:
            raise KeyboardInterrupt

    at_each_step(stop)
    with pytest.raises(KeyboardInterrupt):
        train(folder, samples, tmp_path / "stopped")
    resumed = train(folder, samples, tmp_path / "stopped").state_dict()
    assert len(steps) == 6, "steps 1 to 4, then 3 and 4"
    assert all(weight.equal(resumed[name]) for name, weight in whole.items())


def test_the_prompts_of_stock_trl_are_refused(
    folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM expands the images of TRL 1.16's prompts again."""
    monkeypatch.setattr(vllm, "collapse_images", lambda ids, processor: ids)
    with pytest.raises(HardcaseError, match=r"grpo: vLLM read a prompt of 87 tokens instead of the trainer's 62"):
        train(folder, samples[:1], tmp_path)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 0.9), ("bfloat16", 0.1)])
def test_other_weights_than_the_trained_ones_are_refused(
    dtype: str, scale: float, folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when changed weights do not arrive in vLLM."""

    def spoil(model: Any) -> None:
        model.model.language_model.norm.weight.mul_(scale)

    monkeypatch.setattr(VllmRollouts, "sync_weights", lambda self: None)
    with pytest.raises(HardcaseError, match=r"log-probabilities of vLLM differ from the trainer's by .* on average"):
        train(folder, samples, tmp_path, spoil, dtype=dtype, vllm_dtype=dtype)


def test_frozen_weights_are_the_same_bits_after_many_syncs_and_vllm_has_their_sum_with_the_adapters(
    folder: Path, samples: list[Sample], tmp_path: Path, at_each_step: Callable[[Look], None]
) -> None:
    """Adding adapters to bfloat16 weights and subtracting them again rounds, and moves them a little each time."""
    before, _ = load_model(folder, dtype="bfloat16")
    checked: list[str] = []

    @torch.no_grad()
    def sync(self: VllmRollouts, *_: Any) -> None:
        layers = {
            name.removeprefix("base_model.model.model.language_model."): layer
            for name, layer in self.model.named_modules()
            if hasattr(layer, "lora_B")
        }
        for layer in layers.values():
            layer.lora_B["default"].weight.normal_(0, 0.02)
        for _ in range(50):
            self.sync_weights()
        sums = {}
        for name, layer in layers.items():
            base = layer.base_layer.weight
            assert base.equal(before.model.language_model.get_submodule(name).weight)
            added = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            sums[name] = (base.float() + added).bfloat16()
            assert not sums[name].equal(base)
        held = self.llm.llm_engine.model_executor.driver_worker.model_runner.model.language_model.model
        for name, joined in ((name, held.get_submodule(name)) for name, _ in held.named_modules()):
            parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
            outer, _, last = name.rpartition(".")
            if last.endswith("_proj"):
                assert joined.weight.equal(torch.cat([sums[f"{outer}.{part}"] for part in parts.get(last, (last,))]))
                checked.append(name)

    at_each_step(sync)
    train(folder, samples, tmp_path, dtype="bfloat16", vllm_dtype="bfloat16", bf16=True, lora=LORA, steps=1)
    assert len(checked) == 4 * 2, "four in each of two layers"
