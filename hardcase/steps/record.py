"""record: what a registered version scored on other data, kept in the store and told to MLflow.

MLflow shows it (experiment `EXPERIMENT`, one run an evaluation) and is where Airflow reads it; the record is the
store's `evaluations/<name>/<run>.json`.
"""

import json
from pathlib import Path
from typing import Any, Final

from hardcase.registry.tracking import show_run
from hardcase.store.digest import canonical_json, path_digest
from hardcase.store.store import open_store, write_atomically

EXPERIMENT: Final = "hardcase-evaluations"
RECORDS: Final = "evaluations"


def run(
    snapshot: Path,
    evaluation: Path,
    scores: Path,
    drift: Path,
    store: str,
    tracking_uri: str,
    version: str,
    source: str,
    run_id: str,
    result: Path,
) -> None:
    """Keep the tables and say what came of it.

    Args:
        snapshot: the manifest.
        evaluation: the model's answers, judged.
        scores: of them.
        drift: against the evaluation that the version was judged by when it was registered.
        store: URI of the object store.
        tracking_uri: of MLflow.
        version: `NAME:NUMBER`.
        source: of the data.
        run_id: under which it is recorded.
        result: JSON: `model`, `run_id`, `source`, `snapshot`, `samples`, `scores` (`chance`, `model`), `drift`,
            `evaluation` (sha256 of the table).

    Raises:
        HardcaseError: the store takes no more.
    """
    kept = open_store(store)
    found, drifted = (json.loads(path.read_text(encoding="utf-8")) for path in (scores, drift))
    facts: dict[str, Any] = {
        "model": version,
        "run_id": run_id,
        "source": source,
        "snapshot": path_digest(snapshot),
        "samples": found["samples"],
        "scores": {"chance": found["chance"], "model": found["final"]},
        "drift": {"drifted": drifted["drifted"], "reference": drifted["reference"], "tests": drifted["tests"]},
        "evaluation": kept.put_object(evaluation.read_bytes()),
    }
    kept.put_named(f"{RECORDS}/{version.partition(':')[0]}/{run_id}.json", canonical_json(facts))
    write_atomically(result, canonical_json(facts))
    model = facts["scores"]["model"]
    metrics = {name: model[name] for name in ("overall", "exact_match")}
    show_run(
        tracking_uri,
        EXPERIMENT,
        run_id,
        version,
        {**facts, "scores": {"model": model}},
        {"model": version, "snapshot": facts["snapshot"]},
        {**metrics, "drifted": float(facts["drift"]["drifted"])},
    )
