"""Ask MLflow's REST API what came of a Kubeflow run: Kubeflow's own API returns no results.

The last step of each run tags an MLflow run with Kubeflow's run id, also when all other steps came from the cache. The
connection is `hardcase_mlflow` (type http; a password is sent as bearer token). Without it, version and verdict of a
retraining are not known here, and nothing can be evaluated on Kubeflow.
"""

import json
import logging
from typing import Any, Final

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from hardcase_provider.rest import url_of

CONNECTION: Final = "hardcase_mlflow"
# As hardcase/registry/tracking.py, report/summary.py and record/step.py name them.
RUNS: Final = "hardcase-runs"
EVALUATIONS: Final = "hardcase-evaluations"
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

    def result(self, run_id: str, experiment: str) -> dict[str, Any]:
        """Return what that run of Kubeflow recorded in that experiment; empty if it recorded nothing."""
        place = self.ask("GET", "/experiments/get-by-name", params={"experiment_name": experiment})
        if not place:
            return {}
        query = {
            "experiment_ids": [place["experiment"]["experiment_id"]],
            "filter": f"tags.`{RUN_TAG}` = '{run_id}'",
            "max_results": 1,
        }
        for run in self.ask("POST", "/runs/search", json=query).get("runs") or []:
            tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags") or []}
            result: dict[str, Any] = json.loads(tags[RESULT_TAG])
            return result
        return {}


def find_result(run_id: str, experiment: str = RUNS) -> dict[str, Any]:
    """Return what a run of Kubeflow recorded of itself, by its id; empty, with the reason in the log, if unknown.

    Args:
        run_id: Kubeflow's.
        experiment: `RUNS` for how a run ended, `EVALUATIONS` for scores.
    """
    try:
        mlflow = MLflow()
    except AirflowNotFoundException:
        logger.info("the result of run %s is not known here: there is no connection %s", run_id, CONNECTION)
        return {}
    result = mlflow.result(run_id, experiment)
    if not result:
        logger.warning("MLflow at %s has no record of run %s in %s", mlflow.url, run_id, experiment)
    return result


def describe_registration(run_id: str) -> dict[str, Any]:
    """Return the gate's verdict on a run's model, its version and digest, and the link to it; empty if unknown."""
    result = find_result(run_id)
    gate, model = result.get("gate") or {}, result.get("model") or {}
    if not model:
        return {}
    return {
        "verdict": gate.get("verdict"),
        "reasons": gate.get("reasons"),
        "version": int(model["version"]),
        "digest": model.get("digest"),
        "report": f"{MLflow().url}/#/models/{model['name']}/versions/{model['version']}",
    }


def resolve_version(model: str) -> str:
    """Return `NAME:NUMBER` for an alias, `NAME@ALIAS`; the same name where MLflow does not know the alias.

    Raises:
        AirflowFailException: there is no connection, so that nobody would tell the evaluation's result either.
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
