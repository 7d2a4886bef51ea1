"""The KFP component of validate."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate(plan: dict[str, Any], snapshot: str) -> str:
    """Run the expectation suite over the snapshot's table; a failing suite stops the run."""
    from hardcase.steps.validate import execute

    return execute(plan, snapshot)
