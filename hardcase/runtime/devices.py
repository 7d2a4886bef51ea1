"""Whether there are the devices that a profile or a pod requests."""

import os
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit

from hardcase.config import EvaluationProfile, Profile
from hardcase.errors import InputError


def require_gpus(gpus: str) -> None:
    """Refuse hours of work on CPUs where Kubernetes was asked for `gpus` (empty for none) and gave fewer."""
    if not gpus:
        return
    if (seen := count_gpus()) < int(gpus):
        raise InputError(
            f"this step was to get {gpus} GPUs and sees {seen}: check the node's NVIDIA driver and device plugin, and "
            "that the image has a CUDA build of torch; or choose a profile without `cluster.gpu_memory`"
        )


def count_gpus() -> int:
    """Count the GPUs of this machine; an image without torch has none."""
    if not find_spec("torch"):
        return 0
    import torch

    return torch.cuda.device_count()


def require_board(kind: str) -> None:
    """Refuse live metrics of a kind that is not installed, or without a login."""
    if kind != "none" and not find_spec(kind):
        raise InputError(f"metrics is {kind}, which is not installed; pip install {kind}, or set it to none")
    if kind != "wandb" or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        known = netrc().authenticators(host)
    except (OSError, NetrcParseError):
        known = None
    if not known:
        raise InputError(
            f"metrics is wandb, and this machine is not logged in to {host}: set WANDB_API_KEY, run `wandb login`, or "
            "set WANDB_MODE=offline"
        )


def require_devices(profile: Profile | EvaluationProfile) -> None:
    """Refuse a profile for which this machine lacks devices, or that gets none on a cluster.

    Where `cluster.gpu_memory` is set, the devices are those of other pods. A run on one machine never has it.
    """
    if profile.cluster.gpu_memory:
        return
    for step in profile.vllm_steps:
        if not count_gpus():
            raise InputError(
                f"{step}.engine is vllm, which needs a GPU, and there is none; set it to transformers, or on a cluster "
                "set cluster.gpu_memory"
            )
        if not find_spec("vllm"):
            raise InputError(f"{step}.engine is vllm, which is not installed; install it, or set it to transformers")
    if not isinstance(profile, Profile) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return
    if find_spec("torch"):  # else the steps run elsewhere
        require_board(profile.metrics)
    for step, config in (("sft", profile.sft), ("grpo", profile.grpo)):
        if config.nodes > 1 and os.environ.get("HARDCASE_TRAINER") != "local":
            raise InputError(f"{step}.nodes is {config.nodes}, and this is one machine; set it to 1, or launch it")
        if config.processes > 1 and 0 < (gpus := count_gpus()) < config.processes:
            raise InputError(
                f"{step}.processes is {config.processes}, one for each GPU, and this machine has {gpus}; lower it"
            )
