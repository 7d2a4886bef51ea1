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
# The report's name of each artifact: the step that makes it, and its name there.
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
    "register": ("register", "result"),
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
    registered = register_step(
        model=final,
        evaluation=judged.outputs["evaluation"],
        scores=judged.outputs["scores"],
        drift=compared.outputs["result"],
        champion=champion,
        tracking_uri=tracking_uri,
        seed=seed,
        fingerprint=fingerprint,
        config=register,
        **place,
    )
    tasks = {
        "ingest": read,
        "validate": checked,
        "sft": tuned,
        "mine": mined,
        "grpo": improved,
        "evaluate": judged,
        "drift": compared,
        "register": registered,
    }
    artifacts = {name: tasks[step].outputs[output] for name, (step, output) in ARTIFACTS.items()}
    report_step(facts=facts, **artifacts, **place)
