"""The KFP component of validate."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate(snapshot: str, place: dict[str, str], config: dict[str, Any]) -> str:
    """Run the expectation suite over the snapshot's table; a failing suite stops the run."""
    from hardcase.config import ValidateConfig
    from hardcase.runtime.running import running
    from hardcase.steps.validate import run

    with running("validate", place, {"snapshot": snapshot}, config=config) as work:
        settings = ValidateConfig.model_validate(config)
        outputs = work.output("validation"), work.output("validation_docs")
        run(work.input("snapshot"), place["store"], settings, *outputs)
    return work.attestation
