"""The KFP component of drift."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(plan: dict[str, Any], evaluation: str) -> str:
    """Compare this evaluation with the reference's."""
    from hardcase.steps.drift import execute

    return execute(plan, evaluation)
