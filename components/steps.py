"""The KFP components: a signature and one call of each step. KFP runs the source of one function, so each imports."""

from typing import Any

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Markdown, Metrics, Output, PipelineTaskFinalStatus

from hardcase.runtime.running import LIGHT_IMAGE, TRAIN_IMAGE


def retraining_plan() -> Any:
    """Return the type of the result of `configure`; KFP evaluates it in the component's process again."""
    from hardcase.steps.configure import RetrainingPlan

    return RetrainingPlan


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False, additional_funcs=[retraining_plan])
def configure(profile: str, source: str, seed: int, settings: dict[str, Any]) -> retraining_plan():  # type: ignore[valid-type]
    """Plan every step: the profile, changed by what was asked for, and today's champion."""
    from hardcase.steps.configure import execute

    return execute(profile, source, seed, settings)


def evaluation_plan() -> Any:
    """Return the type of the result of `fetch`; KFP evaluates it in the component's process again."""
    from hardcase.steps.fetch import EvaluationPlan

    return EvaluationPlan


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False, additional_funcs=[evaluation_plan])
def fetch(model: str, source: str, settings: dict[str, Any]) -> evaluation_plan():  # type: ignore[valid-type]
    """Fetch a registered version, and plan the steps that score it."""
    from hardcase.steps.fetch import execute

    return execute(model, source, settings)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def ingest(plan: dict[str, Any]) -> str:
    """Read a source of samples into a content-addressed snapshot; bad rows are quarantined."""
    from hardcase.steps.ingest import execute

    return execute(plan)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def validate(plan: dict[str, Any], snapshot: str) -> str:
    """Run the expectation suite over the snapshot's table; a failing suite stops the run."""
    from hardcase.steps.validate import execute

    return execute(plan, snapshot)


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(plan: dict[str, Any], snapshot: str, validation: str) -> str:
    """Fine-tune on the annotated training samples, once the snapshot is found valid."""
    from hardcase.steps.sft import execute

    return execute(plan, snapshot, validation)


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def rollout(plan: dict[str, Any], snapshot: str, model: str) -> str:
    """Let the SFT model answer the training samples, k times each."""
    from hardcase.steps.rollout import execute

    return execute(plan, snapshot, model)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def mine(plan: dict[str, Any], rollouts: str) -> str:
    """Find the training samples that the SFT model gets wrong."""
    from hardcase.steps.mine import execute

    return execute(plan, rollouts)


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def grpo(plan: dict[str, Any], snapshot: str, sft_model: str, mined: str) -> str:
    """Train with HCM-GRPO from the SFT model on all training samples."""
    from hardcase.steps.grpo import execute

    return execute(plan, snapshot, sft_model, mined)


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def answer(plan: dict[str, Any], snapshot: str, model: str, sft_model: str = "") -> str:
    """Let a model answer the evaluation split, and the SFT model that it was trained from, if it is given."""
    from hardcase.steps.answer import execute

    return execute(plan, snapshot, model, sft_model)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def evaluate(
    plan: dict[str, Any], answers: str, metrics: Output[Metrics], confusion: Output[ClassificationMetrics]
) -> str:
    """Score a model's answers on the evaluation split, and the SFT model's, if it was asked too."""
    from hardcase.steps.evaluate import execute

    return execute(plan, answers, metrics, confusion)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(plan: dict[str, Any], evaluation: str) -> str:
    """Compare this evaluation with the reference's."""
    from hardcase.steps.drift import execute

    return execute(plan, evaluation)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def register(plan: dict[str, Any], model: str, evaluation: str, drift: str) -> str:
    """Register the model with the record of what it was made of, and make it the champion if it passes the gate."""
    from hardcase.steps.register import execute

    return execute(plan, model, evaluation, drift)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def conclude(
    pipeline: str,
    profile: str,
    source: str,
    seed: int,
    settings: dict[str, Any],
    status: PipelineTaskFinalStatus,
    report: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Write the report and the record of the run however it ended, and notify people of a run that failed."""
    from pathlib import Path

    from hardcase.steps.conclude import execute

    asked = {"pipeline": pipeline, "profile": profile, "source": source, "seed": int(seed), "settings": settings}
    execute(asked, status.state, Path(report.path), Path(summary.path))
