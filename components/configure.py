"""The KFP component of configure."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


def plan_type() -> Any:
    """Return the type of what the component hands on; KFP evaluates it in the component's process again."""
    from hardcase.steps.configure import RetrainingPlan

    return RetrainingPlan


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False, additional_funcs=[plan_type])
def configure(profile: str, source: str, seed: int, settings: dict[str, Any]) -> plan_type():  # type: ignore[valid-type]
    """Plan every step: the profile, changed by what was asked for, and today's champion."""
    from hardcase.steps.configure import execute

    return execute(profile, source, seed, settings)
