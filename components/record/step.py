"""record: what a registered version scored on other data, kept in the store and told to MLflow.

MLflow shows it (experiment `EXPERIMENT`, one run an evaluation) and is where Airflow reads it; the record is the
store's `evaluations/<name>/<run>.json`.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hardcase.audit.retention import keep_run
from hardcase.data.digest import canonical_json, path_digest
from hardcase.data.store import Store, open_store, write_whole

EXPERIMENT: Final = "hardcase-evaluations"
RECORDS: Final = "evaluations"
RUN_TAG: Final = "hardcase.run"
RESULT_TAG: Final = "hardcase.result"
logger = logging.getLogger(__name__)


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
    facts = {
        "model": version,
        "run_id": run_id,
        "source": source,
        "snapshot": path_digest(snapshot),
        "samples": found["samples"],
        "scores": {"chance": found["chance"], "model": found["grpo"]},
        "drift": {"drifted": drifted["drifted"], "reference": drifted["reference"], "tests": drifted["tests"]},
        "evaluation": kept.put_object(evaluation.read_bytes()),
    }
    _keep(kept, version.partition(":")[0], run_id, facts)
    write_whole(result, canonical_json(facts))
    try:
        _tell(tracking_uri, run_id, facts)
    except Exception as error:  # MLflow's own, of any kind; the record is in the store
        logger.warning("MLflow was not told of run %s: %s", run_id, " ".join(str(error).split())[:300])


def _keep(store: Store, name: str, run_id: str, facts: Mapping[str, Any]) -> None:
    store.put_named(f"{RECORDS}/{name}/{run_id}.json", canonical_json(facts))
    keep_run(store, run_id, {**facts, "status": "evaluated"})


def _tell(tracking_uri: str, run_id: str, facts: Mapping[str, Any]) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    place = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    if client.search_runs([place], f"tags.`{RUN_TAG}` = '{run_id}'"):
        return
    brief = {**facts, "scores": {"model": facts["scores"]["model"]}}
    tags = {RUN_TAG: run_id, "model": facts["model"], "snapshot": facts["snapshot"], RESULT_TAG: json.dumps(brief)}
    made = client.create_run(place, tags=tags, run_name=facts["model"])
    for name in ("overall", "exact_match"):
        client.log_metric(made.info.run_id, name, facts["scores"]["model"][name])
    client.log_metric(made.info.run_id, "drifted", float(facts["drift"]["drifted"]))
    client.set_terminated(made.info.run_id)
