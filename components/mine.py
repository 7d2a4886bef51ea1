"""The KFP component of mine."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def mine(rollouts: str, place: dict[str, str], config: dict[str, Any]) -> str:
    """Find the training samples that the SFT model gets wrong."""
    from hardcase.config import MineConfig
    from hardcase.runtime.running import running
    from hardcase.steps.mine import run

    inputs = {"snapshot": rollouts, "rollouts": rollouts}
    with running("mine", place, inputs, config=config) as work:
        settings = MineConfig.model_validate(config)
        run(work.input("snapshot"), place["store"], work.input("rollouts"), settings, work.output("mined"))
    return work.attestation
