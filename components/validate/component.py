"""The KFP face of validate."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate(
    snapshot: Input[Dataset],
    store: str,
    scratch: str,
    code: str,
    config: dict[str, Any],
    result: Output[Artifact],
    docs: Output[Artifact],
) -> None:
    """Run the expectation suite over the snapshot's table; a failing suite stops the run."""
    from pathlib import Path

    from components.running import running
    from components.validate.step import run
    from hardcase.config import ValidateConfig

    settings = ValidateConfig.model_validate(config)
    with running(
        "validate", scratch, {"snapshot": snapshot}, {"result": result, "docs": docs}, code=code, config=config
    ):
        run(Path(snapshot.path), store, settings, Path(result.path), Path(docs.path))
