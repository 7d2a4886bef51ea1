"""The KFP component of grpo."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def grpo(plan: dict[str, Any], snapshot: str, sft_model: str, mined: str) -> str:
    """Train with HCM-GRPO from the SFT model on all training samples."""
    from hardcase.steps.grpo import execute

    return execute(plan, snapshot, sft_model, mined)
