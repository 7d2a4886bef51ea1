"""The KFP component of sft."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(plan: dict[str, Any], snapshot: str, validation: str) -> str:
    """Fine-tune on the annotated training samples, once the snapshot is found valid."""
    from hardcase.steps.sft import execute

    return execute(plan, snapshot, validation)
