"""Evaluation of a registered version on other data: fetch → ingest → answer → evaluate → drift; then `conclude`."""

from typing import Any

from kfp import dsl

from components.answer import answer as answer_step
from components.conclude import conclude as conclude_step
from components.drift import drift as drift_step
from components.evaluate import evaluate as evaluate_step
from components.fetch import fetch as fetch_step
from components.ingest import ingest as ingest_step
from pipelines.resources import HOUR, request_cpus, request_gpus, request_handler


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
    handler = conclude_step(pipeline="evaluation", profile="", source=source, seed=0, settings=settings)
    with dsl.ExitHandler(request_handler(handler), name="run"):
        planned = request_cpus(fetch_step(model=model, source=source, settings=settings), cached=False)  # aliases move
        plan = planned.outputs
        snapshot = request_cpus(ingest_step(plan=plan["ingest"])).output
        answers = answer_step(plan=plan["answer"], snapshot=snapshot, model=plan["model"])
        request_gpus(answers, "answer", plan, 12 * HOUR, priority="backfill")
        scores = request_cpus(evaluate_step(plan=plan["evaluate"], answers=answers.output))
        compared = drift_step(plan=plan["drift"], evaluation=scores.outputs["Output"])
        request_cpus(compared, cached=False)  # its record is how a run is known to have succeeded
