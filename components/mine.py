"""The KFP component of mine."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def mine(plan: dict[str, Any], rollouts: str) -> str:
    """Find the training samples that the SFT model gets wrong."""
    from hardcase.steps.mine import execute

    return execute(plan, rollouts)
