"""The graph: ingest → validate → sft → rollout → mine → grpo → answer → evaluate → drift → register.

The same graph runs on one machine (`hardcase.runners`) and, within an exit handler, on Kubeflow (`pipelines.cluster`).
A step hands on the sha256 of its signed attestation. Attestation and products lie in the store (docs/decisions/0010).
"""

from collections.abc import Mapping
from typing import Any, Final

from kfp import dsl

from components.answer import answer as answer_step
from components.drift import drift as drift_step
from components.evaluate import evaluate as evaluate_step
from components.grpo import grpo as grpo_step
from components.ingest import ingest as ingest_step
from components.mine import mine as mine_step
from components.register import register as register_step
from components.rollout import rollout as rollout_step
from components.sft import sft as sft_step
from components.validate import validate as validate_step

REPLAYED: Final = ("ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "evaluate", "drift")
STEPS: Final = (*REPLAYED, "register")


def chain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Compose the steps from the source to the drift report.

    Args:
        plan: parameters of `replaying`, by name.

    Returns:
        The tasks by step.
    """
    place, seed = plan["place"], plan["seed"]
    snapshot = ingest_step(
        source=plan["source"], source_digest=plan["source_digest"], config=plan["ingest"], place=place
    )
    validation = validate_step(snapshot=snapshot.output, config=plan["validate"], place=place)
    sft_model = sft_step(
        snapshot=snapshot.output,
        validation=validation.output,
        seed=seed,
        start=plan["start"],
        config=plan["sft"],
        gpus=plan["sft_gpus"],
        place=place,
    )
    rollouts = rollout_step(
        snapshot=snapshot.output,
        model=sft_model.output,
        seed=seed,
        shards=plan["rollout_shards"],
        config=plan["mine"],
        gpus=plan["rollout_gpus"],
        place=place,
    )
    mined = mine_step(rollouts=rollouts.output, config=plan["mine"], place=place)
    model = grpo_step(
        snapshot=snapshot.output,
        sft_model=sft_model.output,
        mined=mined.output,
        seed=seed,
        config=plan["grpo"],
        gpus=plan["grpo_gpus"],
        place=place,
    )
    answers = answer_step(
        snapshot=snapshot.output,
        model=model.output,
        sft_model=sft_model.output,
        seed=seed,
        shards=plan["answer_shards"],
        config=plan["evaluate"],
        gpus=plan["answer_gpus"],
        place=place,
    )
    evaluation = evaluate_step(answers=answers.output, seed=seed, config=plan["evaluate"], place=place)
    drift = drift_step(
        evaluation=evaluation.outputs["Output"], reference=plan["reference"], config=plan["drift"], place=place
    )
    tasks = (snapshot, validation, sft_model, rollouts, mined, model, answers, evaluation, drift)
    return dict(zip(REPLAYED, tasks, strict=True))


def graph(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Compose all steps.

    Args:
        plan: parameters of `retraining`, by name.

    Returns:
        The tasks by step.
    """
    tasks = chain(plan)
    tasks["register"] = register_step(
        model=tasks["grpo"].output,
        evaluation=tasks["evaluate"].outputs["Output"],
        drift=tasks["drift"].output,
        seed=plan["seed"],
        launch=plan["launch"],
        config=plan["register"],
        place=plan["place"],
    )
    return tasks


@dsl.pipeline(name="hardcase-retraining")
def retraining(
    place: dict[str, str],
    source: str,
    source_digest: str,
    seed: int,
    reference: str,
    launch: dict[str, str],
    start: dict[str, Any],
    ingest: dict[str, Any],
    validate: dict[str, Any],
    sft: dict[str, Any],
    mine: dict[str, Any],
    grpo: dict[str, Any],
    evaluate: dict[str, Any],
    drift: dict[str, Any],
    register: dict[str, Any],
    rollout_shards: dict[str, int],
    answer_shards: dict[str, int],
    sft_gpus: str,
    rollout_gpus: str,
    grpo_gpus: str,
    answer_gpus: str,
) -> None:
    """Retrain a screener from a source of samples.

    Args:
        place: `store` (URI of the object store), `scratch` (folder of the steps' private folders) and `code` (its
            sha256: changed code is never served from the cache).
        source: URI of the samples.
        source_digest: what a folder source holds; changes with its files.
        seed: of everything that is drawn.
        reference: sha256 of the evaluation to compare with; empty for none.
        launch: `champion` (version to beat; empty for none), `fingerprint` (sha256 of source, configuration, seed and
            code) and `tracking_uri` (of MLflow).
        start: configuration of the model that SFT starts from.
        ingest: configuration of the step, as are the following.
        validate: configuration.
        sft: configuration.
        mine: configuration.
        grpo: configuration.
        evaluate: configuration.
        drift: configuration.
        register: configuration.
        rollout_shards: among how many processes (`shards`) and nodes (`nodes`) mining's rollouts are divided.
        answer_shards: the same of evaluation's answers.
        sft_gpus: how many GPUs the step's process is to see; empty for none, as are the following.
        rollout_gpus: the same.
        grpo_gpus: the same.
        answer_gpus: the same.
    """
    graph(dict(locals()))


@dsl.pipeline(name="hardcase-replay")
def replaying(
    place: dict[str, str],
    source: str,
    source_digest: str,
    seed: int,
    reference: str,
    start: dict[str, Any],
    ingest: dict[str, Any],
    validate: dict[str, Any],
    sft: dict[str, Any],
    mine: dict[str, Any],
    grpo: dict[str, Any],
    evaluate: dict[str, Any],
    drift: dict[str, Any],
    rollout_shards: dict[str, int],
    answer_shards: dict[str, int],
    sft_gpus: str,
    rollout_gpus: str,
    grpo_gpus: str,
    answer_gpus: str,
) -> None:
    """Retrain without registering: what `hardcase audit --replay` does again."""
    chain(dict(locals()))
