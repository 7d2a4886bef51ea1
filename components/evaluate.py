"""The KFP component of evaluate."""

from typing import Any

from kfp import dsl
from kfp.dsl import ClassificationMetrics, Metrics, Output

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def evaluate(
    plan: dict[str, Any], answers: str, metrics: Output[Metrics], confusion: Output[ClassificationMetrics]
) -> str:
    """Score a model's answers on the evaluation split, and the SFT model's, if it was asked too."""
    from hardcase.steps.evaluate import execute

    return execute(plan, answers, metrics, confusion)
