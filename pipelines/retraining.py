"""The graph: ingest → validate → sft → rollout → mine → grpo → answer → evaluate → drift → register → report.

The same pipeline runs on one machine (`pipelines.local`) and, compiled, on Kubeflow.
"""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components.answer.component import answer as answer_step
from components.drift.component import drift as drift_step
from components.evaluate.component import evaluate as evaluate_step
from components.grpo.component import grpo as grpo_step
from components.ingest.component import ingest as ingest_step
from components.mine.component import mine as mine_step
from components.register.component import register as register_step
from components.report.component import report as report_step
from components.report.step import ARTIFACTS
from components.rollout.component import rollout as rollout_step
from components.sft.component import sft as sft_step
from components.validate.component import validate as validate_step

STEPS = (
    "ingest",
    "validate",
    "sft",
    "rollout",
    "mine",
    "grpo",
    "answer",
    "evaluate",
    "drift",
    "register",
    "report",
)
# What register is given besides, and of the steps that are done in shards.
MODELS = {"sft_model": ("sft", "trained"), "model": ("grpo", "trained"), "drift_report": ("drift", "html")}
SHARDED = {"rollouts": ("rollout", "rollouts"), "answers": ("answer", "answers")}
SHARDED |= {"sft_answers": ("answer_sft", "answers")}


def chain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """From the source to the drift report; the tasks by step. `plan` holds the parameters of `replaying`."""
    place = {name: plan[name] for name in ("store", "scratch", "code")}
    seed = plan["seed"]
    read = ingest_step(source=plan["source"], source_digest=plan["source_digest"], config=plan["ingest"], **place)
    snapshot = read.outputs["snapshot"]
    checked = validate_step(snapshot=snapshot, config=plan["validate"], **place)
    tuned = sft_step(
        snapshot=snapshot,
        validation=checked.outputs["result"],
        seed=seed,
        model=plan["model"],
        config=plan["sft"],
        **place,
    )
    sft_model = tuned.outputs["trained"]
    with dsl.ParallelFor(plan["rollout_shards"], name="rollouts") as shard:
        rolled = rollout_step(snapshot=snapshot, model=sft_model, seed=seed, shard=shard, config=plan["mine"], **place)
    mined = mine_step(
        snapshot=snapshot, rollouts=dsl.Collected(rolled.outputs["rollouts"]), config=plan["mine"], **place
    )
    improved = grpo_step(
        snapshot=snapshot, model=sft_model, mined=mined.outputs["mined"], seed=seed, config=plan["grpo"], **place
    )
    final = improved.outputs["trained"]
    with dsl.ParallelFor(plan["answer_shards"], name="answers") as shard:
        answered = {
            role: answer_step(
                snapshot=snapshot, model=model, role=role, seed=seed, shard=shard, config=plan["evaluate"], **place
            )
            for role, model in (("final", final), ("sft", sft_model))
        }
    judged = evaluate_step(
        snapshot=snapshot,
        answers=dsl.Collected(answered["final"].outputs["answers"]),
        sft_answers=dsl.Collected(answered["sft"].outputs["answers"]),
        seed=seed,
        config=plan["evaluate"],
        **place,
    )
    compared = drift_step(
        evaluation=judged.outputs["evaluation"], reference=plan["reference"], config=plan["drift"], **place
    )
    return {
        "ingest": read,
        "validate": checked,
        "sft": tuned,
        "rollout": rolled,
        "mine": mined,
        "grpo": improved,
        "answer": answered["final"],
        "answer_sft": answered["sft"],
        "evaluate": judged,
        "drift": compared,
    }


def graph(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of it; the tasks by step. `plan` holds the parameters of `retraining`."""
    tasks = chain(plan)
    place = {name: plan[name] for name in ("store", "scratch", "code")}
    artifacts = {name: tasks[step].outputs[output] for name, (step, output) in ARTIFACTS.items() if step in tasks}
    tasks["register"] = register_step(
        **artifacts,
        **{name: tasks[step].outputs[output] for name, (step, output) in MODELS.items()},
        **{name: dsl.Collected(tasks[step].outputs[output]) for name, (step, output) in SHARDED.items()},
        **{name: plan[name] for name in ("champion", "tracking_uri", "seed", "fingerprint")},
        config=plan["register"],
        **place,
    )
    registered = tasks["register"].outputs["result"]
    tasks["report"] = report_step(facts=plan["facts"], register=registered, **artifacts, **place)
    return tasks


@dsl.pipeline(name="hardcase-retraining")
def retraining(
    source: str,
    store: str,
    tracking_uri: str,
    scratch: str,
    code: str,
    seed: int,
    fingerprint: str,
    facts: dict[str, Any],
    ingest: dict[str, Any],
    validate: dict[str, Any],
    model: dict[str, Any],
    sft: dict[str, Any],
    mine: dict[str, Any],
    grpo: dict[str, Any],
    evaluate: dict[str, Any],
    drift: dict[str, Any],
    register: dict[str, Any],
    rollout_shards: list[str],
    answer_shards: list[str],
    source_digest: str = "",
    champion: str = "",
    reference: str = "",
) -> None:
    """Retrain a screener from a source of samples.

    Args:
        source: URI of the samples.
        store: URI of the object store.
        tracking_uri: of MLflow.
        scratch: folder of the steps' private folders.
        code: sha256 of the code; changed code is never served from the cache.
        seed: of everything that is drawn.
        fingerprint: sha256 of source, configuration, seed and code.
        facts: what the report says of the run as a whole.
        ingest: configuration of the step, as are the following.
        validate: configuration.
        model: where SFT starts.
        sft: configuration.
        mine: configuration.
        grpo: configuration.
        evaluate: configuration.
        drift: configuration.
        register: configuration.
        rollout_shards: those of mining's rollouts: `["1/1"]` for one.
        answer_shards: those of evaluation's answers.
        source_digest: what a folder source holds; changes with its files.
        champion: version to beat; empty for none.
        reference: sha256 of the evaluation to compare with; empty for none.
    """
    graph(dict(locals()))


@dsl.pipeline(name="hardcase-replay")
def replaying(
    source: str,
    store: str,
    scratch: str,
    code: str,
    seed: int,
    ingest: dict[str, Any],
    validate: dict[str, Any],
    model: dict[str, Any],
    sft: dict[str, Any],
    mine: dict[str, Any],
    grpo: dict[str, Any],
    evaluate: dict[str, Any],
    drift: dict[str, Any],
    rollout_shards: list[str],
    answer_shards: list[str],
    source_digest: str = "",
    reference: str = "",
) -> None:
    """The same without registering: what `hardcase audit --replay` does again."""
    chain(dict(locals()))
