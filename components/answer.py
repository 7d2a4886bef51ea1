"""The KFP component of answer."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def answer(plan: dict[str, Any], snapshot: str, model: str, sft_model: str = "") -> str:
    """Let a model answer the evaluation split, and the SFT model that it was trained from, if it is given."""
    from hardcase.steps.answer import execute

    return execute(plan, snapshot, model, sft_model)
