"""The KFP component of evaluate."""

from typing import Any

from kfp import dsl
from kfp.dsl import ClassificationMetrics, Metrics, Output

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def evaluate(
    answers: str,
    place: dict[str, str],
    seed: int,
    config: dict[str, Any],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> str:
    """Score a model's answers on the untouched split, and the SFT model's, if it was asked too."""
    from hardcase.config import EvaluateConfig
    from hardcase.runtime.metrics import show_scores
    from hardcase.runtime.running import running
    from hardcase.steps.evaluate import run

    inputs = {"snapshot": answers, "answers": answers}
    with running("evaluate", place, inputs, seed=seed, config=config) as work:
        settings, folder = EvaluateConfig.model_validate(config), work.input("answers")
        final, sft = folder / "final.parquet", folder / "sft.parquet"
        run(work.input("snapshot"), place["store"], final, sft, settings, seed, work.outputs)
        show_scores(metrics, confusion, work.output("scores"), work.output("evaluation"))
    return work.attestation
