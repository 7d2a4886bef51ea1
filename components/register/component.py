"""The KFP face of register."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def register(
    model: Input[Model],
    evaluation: Input[Dataset],
    scores: Input[Artifact],
    drift: Input[Artifact],
    champion: str,
    store: str,
    tracking_uri: str,
    scratch: str,
    code: str,
    seed: int,
    fingerprint: str,
    config: dict[str, Any],
    result: Output[Artifact],
) -> None:
    """Register the model, and make it the champion if it passes the gate."""
    from pathlib import Path

    from components.register.step import run
    from components.running import running
    from hardcase.config import RegisterConfig

    settings = RegisterConfig.model_validate(config)
    inputs = [model, evaluation, scores, drift]
    with running("register", scratch, inputs, [result], code=code, champion=champion, fingerprint=fingerprint):
        run(
            Path(model.path),
            Path(evaluation.path),
            Path(scores.path),
            Path(drift.path),
            champion,
            store,
            tracking_uri,
            settings,
            fingerprint,
            seed,
            Path(result.path),
        )
