"""The graph: ingest → validate → sft → mine → grpo → evaluate → drift → register → report.

The same pipeline runs on one machine (`pipelines.local`) and, compiled, on Kubeflow.
"""

from typing import Any

from kfp import dsl

from components.drift.component import drift as drift_step
from components.evaluate.component import evaluate as evaluate_step
from components.grpo.component import grpo as grpo_step
from components.ingest.component import ingest as ingest_step
from components.mine.component import mine as mine_step
from components.register.component import register as register_step
from components.report.component import report as report_step
from components.sft.component import sft as sft_step
from components.validate.component import validate as validate_step

STEPS = ("ingest", "validate", "sft", "mine", "grpo", "evaluate", "drift", "register", "report")
# The name of each artifact for report and register: the step that makes it, and its name there.
ARTIFACTS = {
    "snapshot": ("ingest", "snapshot"),
    "quarantine": ("ingest", "quarantine"),
    "validation": ("validate", "result"),
    "sft_log": ("sft", "log"),
    "mined": ("mine", "mined"),
    "grpo_log": ("grpo", "log"),
    "evaluation": ("evaluate", "evaluation"),
    "baseline": ("evaluate", "baseline"),
    "scores": ("evaluate", "scores"),
    "drift": ("drift", "result"),
}
# What register is given besides.
MODELS = {"sft_model": ("sft", "trained"), "model": ("grpo", "trained"), "drift_report": ("drift", "html")}


def _chain(
    source: Any,
    source_digest: Any,
    store: Any,
    scratch: Any,
    code: Any,
    seed: Any,
    reference: Any,
    ingest: Any,
    validate: Any,
    model: Any,
    sft: Any,
    mine: Any,
    grpo: Any,
    evaluate: Any,
    drift: Any,
) -> dict[str, Any]:
    """From the source to the drift report; the tasks by step."""
    place = {"store": store, "scratch": scratch, "code": code}
    read = ingest_step(source=source, source_digest=source_digest, config=ingest, **place)
    snapshot = read.outputs["snapshot"]
    checked = validate_step(snapshot=snapshot, config=validate, **place)
    tuned = sft_step(
        snapshot=snapshot, validation=checked.outputs["result"], seed=seed, model=model, config=sft, **place
    )
    sft_model = tuned.outputs["trained"]
    mined = mine_step(snapshot=snapshot, model=sft_model, seed=seed, config=mine, **place)
    improved = grpo_step(
        snapshot=snapshot, model=sft_model, mined=mined.outputs["mined"], seed=seed, config=grpo, **place
    )
    final = improved.outputs["trained"]
    judged = evaluate_step(snapshot=snapshot, sft_model=sft_model, model=final, seed=seed, config=evaluate, **place)
    compared = drift_step(evaluation=judged.outputs["evaluation"], reference=reference, config=drift, **place)
    return {
        "ingest": read,
        "validate": checked,
        "sft": tuned,
        "mine": mined,
        "grpo": improved,
        "evaluate": judged,
        "drift": compared,
    }


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
        source_digest: what a folder source holds; changes with its files.
        champion: version to beat; empty for none.
        reference: sha256 of the evaluation to compare with; empty for none.
    """
    tasks = _chain(
        source,
        source_digest,
        store,
        scratch,
        code,
        seed,
        reference,
        ingest,
        validate,
        model,
        sft,
        mine,
        grpo,
        evaluate,
        drift,
    )
    place = {"store": store, "scratch": scratch, "code": code}
    registered = register_step(
        **{name: tasks[step].outputs[output] for name, (step, output) in {**ARTIFACTS, **MODELS}.items()},
        champion=champion,
        tracking_uri=tracking_uri,
        seed=seed,
        fingerprint=fingerprint,
        config=register,
        **place,
    )
    artifacts = {name: tasks[step].outputs[output] for name, (step, output) in ARTIFACTS.items()}
    report_step(facts=facts, register=registered.outputs["result"], **artifacts, **place)


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
    reference: str = "",
) -> None:
    """The same without registering: what `hardcase audit --replay` does again."""
    _chain(source, "", store, scratch, code, seed, reference, ingest, validate, model, sft, mine, grpo, evaluate, drift)
