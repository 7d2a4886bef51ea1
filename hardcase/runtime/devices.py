"""Whether a step's process has the GPUs that its pod requested."""

from hardcase.errors import InputError


def require_gpus(gpus: str) -> None:
    """Refuse hours of work on CPUs where Kubernetes was asked for `gpus` (empty for none) and gave fewer."""
    if not gpus:
        return
    import torch

    if (seen := torch.cuda.device_count()) < int(gpus):
        raise InputError(
            f"this step was to get {gpus} GPUs and sees {seen}: check the node's NVIDIA driver and device plugin, and "
            "that the image has a CUDA build of torch; or choose a profile without `cluster.gpu_memory`"
        )
