"""GRPO with vLLM beside the training: the prompts, the weights and the log-probabilities of both are the same."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory

from hardcase.config import LoraConfig
from hardcase.data.cases import read_cases
from hardcase.errors import HardcaseError
from hardcase.model import vllm
from hardcase.model.internvl import load_model
from hardcase.model.vllm import VllmEngine, VllmRollouts
from hardcase.runtime.processes import in_processes
from hardcase.task.sample import Sample
from tests.vllm.training import CONFIG, LORA, Look, find_largest_difference, reward_lengths, run, train


@pytest.fixture(autouse=True)
def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardcase.model.grpo.dpa_reward", reward_lengths)


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

    def collect(self: VllmRollouts, *rollouts: Any) -> None:
        weights.append(torch.cat([weight.detach().flatten() for weight in self.model.parameters()]))
        differences.append(find_largest_difference(self, *rollouts))

    at_each_step(collect)
    train(folder, samples[:2], tmp_path, lora=lora)
    assert len(differences) == 4
    assert not any(one.equal(other) for one, other in pairwise(weights))
    assert max(differences) < 1e-4


@pytest.mark.parametrize(("zero", "lora"), [(2, None), (3, LORA)])
def test_log_probabilities_are_equal_in_two_processes_that_divide_the_weights(
    zero: int, lora: LoraConfig | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the work is of the tests
    config = CONFIG.model_copy(update={"zero": zero, "lora": lora, "processes": 2, "steps": 2})
    in_processes(run, config, tmp_path, model=folder, out=tmp_path)
    differences = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(2)]
    assert [len(of_process) for of_process in differences] == [2, 2]
    assert max(map(max, differences)) < 1e-4


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


def test_a_later_round_mines_with_vllm_and_the_weights_in_training(
    folder: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, complete = VllmRollouts.sync_weights, VllmEngine.complete
    monkeypatch.setattr(VllmRollouts, "sync_weights", lambda self: (calls.append("sync"), sync(self)))
    monkeypatch.setattr(VllmEngine, "complete", lambda *given: (calls.append("complete"), complete(*given))[1])
    train(folder, samples, tmp_path, rounds=2, hard_share=0.5)
    batches = -(-len(samples) // (CONFIG.batch_size // CONFIG.generations))
    assert calls.count("complete") == batches
    assert calls[calls.index("complete") - 1] == "sync"
    mined = read_cases(tmp_path / "mined-1.parquet")
    assert [case.id for case in mined] == [sample.id for sample in samples]
    assert {len(case.answers) for case in mined} == {CONFIG.generations}


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
