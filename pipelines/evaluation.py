"""Evaluation of a registered version on other data: fetch → ingest → answer → evaluate → drift; then `conclude`."""

from typing import Any

from kfp import dsl

from components import steps
from pipelines.resources import HOUR, request_cpus, request_first, request_gpus, request_handler


@dsl.pipeline(name="hardcase-evaluation")
def evaluation(
    model: str = "image-screener@champion",
    source: str = "procedural://?samples=200&seed=11",
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Score a registered version on other data, with the configuration recorded with it.

    Args:
        model: NAME@champion, NAME@challenger or NAME:VERSION.
        source: Samples with answers: s3://bucket/prefix, snapshot:ID or procedural://…
        settings: Keys of the recorded configuration to change, such as {"evaluate.batch_size": 32}.
    """
    handler = steps.conclude(pipeline="evaluation", profile="", source=source, seed=0, settings=settings)
    with dsl.ExitHandler(request_handler(handler), name="run"):
        planned = request_first(steps.fetch(model=model, source=source, settings=settings))
        plan = planned.outputs
        snapshot = request_cpus(steps.ingest(plan=plan["ingest"]), timeout=12 * HOUR).output
        answers = steps.answer(plan=plan["answer"], snapshot=snapshot, model=plan["model"])
        request_gpus(answers, "answer", plan, 12 * HOUR, priority="backfill")
        scores = request_cpus(steps.evaluate(plan=plan["evaluate"], answers=answers.output))
        compared = steps.drift(plan=plan["drift"], evaluation=scores.outputs["Output"])
        request_cpus(compared, cached=False)  # its record is how a run is known to have succeeded
