"""The KFP face of evaluate."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    snapshot: Input[Dataset],
    sft_model: Input[Model],
    model: Input[Model],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    config: dict[str, Any],
    evaluation: Output[Dataset],
    baseline: Output[Dataset],
    scores: Output[Artifact],
) -> None:
    """Score the final model and the SFT model on the untouched split."""
    from pathlib import Path

    from components.evaluate.step import run
    from components.running import running
    from hardcase.config import EvaluateConfig

    settings = EvaluateConfig.model_validate(config)
    inputs, outputs = (
        {"snapshot": snapshot, "sft_model": sft_model, "model": model},
        {"evaluation": evaluation, "baseline": baseline, "scores": scores},
    )
    with running("evaluate", scratch, inputs, outputs, code=code, seed=seed, config=config) as private:
        run(
            Path(snapshot.path),
            store,
            Path(sft_model.path),
            Path(model.path),
            settings,
            seed,
            private,
            Path(evaluation.path),
            Path(baseline.path),
            Path(scores.path),
        )
