"""The KFP component of register."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def register(plan: dict[str, Any], model: str, evaluation: str, drift: str) -> str:
    """Register the model with the record of what it was made of, and make it the champion if it passes the gate."""
    from hardcase.steps.register import execute

    return execute(plan, model, evaluation, drift)
