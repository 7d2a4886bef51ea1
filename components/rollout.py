"""The KFP component of rollout."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def rollout(plan: dict[str, Any], snapshot: str, model: str) -> str:
    """Let the SFT model answer the training samples, k times each."""
    from hardcase.steps.rollout import execute

    return execute(plan, snapshot, model)
