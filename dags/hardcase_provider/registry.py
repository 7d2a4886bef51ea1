"""Read the record of a run: MLflow's REST API has that of a Kubeflow run, `hardcase` printed that of a local one.

The last step of each Kubeflow run tags an MLflow run with Kubeflow's run id, also when all other steps came from the
cache. Kubeflow's own API returns no results. The connection is `hardcase_mlflow` (type http; a password is sent as
bearer token). Without it, version and verdict of a retraining are not known here, and nothing can be evaluated on
Kubeflow.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from hardcase_provider.hooks import url_of

CONNECTION: Final = "hardcase_mlflow"
# As hardcase/registry/tracking.py and hardcase/report/summary.py name them.
EXPERIMENT: Final = "hardcase-runs"
RUN_TAG: Final = "hardcase.run"
RESULT_TAG: Final = "hardcase.result"
logger = logging.getLogger(__name__)


class MLflow:
    """The server of the connection.

    Raises:
        AirflowNotFoundException: there is no such connection.
    """

    def __init__(self) -> None:
        connection = BaseHook.get_connection(CONNECTION)
        self.url = url_of(connection)
        headers = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
        self._client = httpx.Client(base_url=f"{self.url}/api/2.0/mlflow", headers=headers, timeout=30)

    def ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        """Return the answer; empty if there is no such thing."""
        answer = self._client.request(method, path, **sent)
        if answer.status_code == httpx.codes.NOT_FOUND and "RESOURCE_DOES_NOT_EXIST" in answer.text:
            return {}
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content

    def find_record(self, run_id: str) -> dict[str, Any]:
        """Return the record of that run of Kubeflow; empty if there is none."""
        found = self.ask("GET", "/experiments/get-by-name", params={"experiment_name": EXPERIMENT})
        if not found:
            return {}
        query = {
            "experiment_ids": [found["experiment"]["experiment_id"]],
            "filter": f"tags.`{RUN_TAG}` = '{run_id}'",
            "max_results": 1,
        }
        for run in self.ask("POST", "/runs/search", json=query).get("runs") or []:
            tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags") or []}
            record: dict[str, Any] = json.loads(tags[RESULT_TAG])
            return record
        return {}


def find_record(run_id: str) -> dict[str, Any]:
    """Return the record of a run of Kubeflow, by its id; empty, with the reason in the log, if it is not known."""
    try:
        mlflow = MLflow()
    except AirflowNotFoundException:
        logger.info("the record of run %s is not known here: there is no connection %s", run_id, CONNECTION)
        return {}
    record = mlflow.find_record(run_id)
    if not record:
        logger.warning("MLflow at %s has no record of run %s in %s", mlflow.url, run_id, EXPERIMENT)
    return record


def read_result(ti: Any) -> dict[str, Any]:
    """Return what came of a run, for the event of an Asset, whichever task ran it: `local_run` or `kubeflow_run`.

    Returns:
        `engine`, `run_id`, `run` (link to it on Kubeflow), `report` (link to it), and what its record says: `status`,
        `snapshot`, `samples`, `scores` of the model, `drift`, `evaluation`, `verdict`, `reasons`, `model`, `version`,
        `digest`. `status` is None if the record is not known.
    """
    if record := ti.xcom_pull(task_ids="local_run"):
        about = {"engine": "local", "run_id": record["run_id"], "run": None}
        about["report"] = Path(record["report"]).absolute().as_uri() if record.get("report") else None
    else:
        run = ti.xcom_pull(task_ids="kubeflow_run")
        record = find_record(run["run_id"])
        about = {"engine": "kubeflow", "run_id": run["run_id"], "run": run["link"], "report": run["link"]}
    return {**about, **describe_record(record)}


def describe_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a run's record; those that it does not have are None."""
    gate, model = record.get("gate") or {}, record.get("model") or {}
    scores = (record.get("scores") or {}).get("final") or {}
    return {
        **{name: record.get(name) for name in ("status", "snapshot", "samples", "drift", "evaluation")},
        "scores": {name: scores[name] for name in ("overall", "exact_match", "intervals") if name in scores},
        "verdict": gate.get("verdict"),
        "reasons": gate.get("reasons"),
        "model": f"{model['name']}:{model['version']}" if model else None,
        "version": int(model["version"]) if model else None,
        "digest": model.get("digest"),
    }


def resolve_version(model: str) -> str:
    """Return `NAME:NUMBER` for an alias, `NAME@ALIAS`; the same name where MLflow does not know the alias.

    Raises:
        AirflowFailException: there is no connection, so that the evaluation's result could not be read either.
    """
    try:
        mlflow = MLflow()
    except AirflowNotFoundException:
        raise AirflowFailException(
            f"connection {CONNECTION}: there is none, and what Kubeflow evaluated is read from MLflow; add it"
        ) from None
    name, _, alias = model.partition("@")
    found = mlflow.ask("GET", "/registered-models/alias", params={"name": name, "alias": alias}) if alias else {}
    return f"{name}:{found['model_version']['version']}" if found else model
