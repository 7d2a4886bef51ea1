"""The KFP component of ingest."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def ingest(plan: dict[str, Any]) -> str:
    """Read a source of samples into a content-addressed snapshot; bad rows are quarantined."""
    from hardcase.steps.ingest import execute

    return execute(plan)
