"""The KFP component of fetch."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


def plan_type() -> Any:
    """Return the type of what the component hands on; KFP evaluates it in the component's process again."""
    from hardcase.steps.fetch import EvaluationPlan

    return EvaluationPlan


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False, additional_funcs=[plan_type])
def fetch(model: str, source: str, settings: dict[str, Any]) -> plan_type():  # type: ignore[valid-type]
    """Fetch a registered version, and plan the steps that score it."""
    from hardcase.steps.fetch import execute

    return execute(model, source, settings)
