"""Retraining: configure → ingest → validate → sft → rollout → mine → grpo → answer → evaluate → drift → register.

However it ends, `conclude` reports and records it. A step hands on the sha256 of its signed attestation: attestation
and products are in the object store (docs/decisions/0010). Every runner executes this graph as it is compiled in
`retraining.yaml`.
"""

from typing import Any

from kfp import dsl

from components import steps
from pipelines.resources import HOUR, request_cpus, request_first, request_gpus, request_handler


@dsl.pipeline(name="hardcase-retraining")
def retraining(
    profile: str = "tiny",
    source: str = "",
    seed: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Retrain the model that screens generated images.

    Args:
        profile: How to retrain: tiny and smoke learn drawn scenes without a GPU, internvl3-2b trains the real model.
        source: Where the samples are: s3://bucket/prefix, several of these with spaces between, snapshot:ID or
            procedural://…; empty for the profile's own.
        seed: Of everything that is drawn.
        settings: Keys of the profile to change, such as {"sft.steps": 500}.
    """
    asked: dict[str, Any] = {"profile": profile, "source": source, "seed": seed, "settings": settings}
    handler = request_handler(steps.conclude(pipeline="retraining", **asked))
    with dsl.ExitHandler(handler, name="run"):
        planned = request_first(steps.configure(**asked))
        plan = planned.outputs
        snapshot = request_cpus(steps.ingest(plan=plan["ingest"]), timeout=12 * HOUR).output
        validation = request_cpus(steps.validate(plan=plan["validate"], snapshot=snapshot)).output
        sft = steps.sft(plan=plan["sft"], snapshot=snapshot, validation=validation)
        sft_model = request_gpus(sft, "sft", plan, 24 * HOUR).output
        rollouts = steps.rollout(plan=plan["rollout"], snapshot=snapshot, model=sft_model)
        request_gpus(rollouts, "rollout", plan, 12 * HOUR)
        mined = request_cpus(steps.mine(plan=plan["mine"], rollouts=rollouts.output)).output
        grpo = steps.grpo(plan=plan["grpo"], snapshot=snapshot, sft_model=sft_model, mined=mined)
        model = request_gpus(grpo, "grpo", plan, 48 * HOUR).output
        answers = steps.answer(plan=plan["answer"], snapshot=snapshot, model=model, sft_model=sft_model)
        request_gpus(answers, "answer", plan, 12 * HOUR)
        scores = request_cpus(steps.evaluate(plan=plan["evaluate"], answers=answers.output))
        evaluation = scores.outputs["Output"]
        drift = request_cpus(steps.drift(plan=plan["drift"], evaluation=evaluation)).output
        registered = steps.register(plan=plan["register"], model=model, evaluation=evaluation, drift=drift)
        request_cpus(registered, cached=False)  # its record is how a run is known to have succeeded
