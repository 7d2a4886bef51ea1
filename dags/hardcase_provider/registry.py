"""What came of a Kubeflow run, from MLflow's REST API: Kubeflow's own tells no results.

By a connection `hardcase_mlflow` (type http, a password is sent as bearer token). Without one a retraining's version is
not known here, and nothing can be evaluated on Kubeflow.
"""

import json
import logging
from datetime import datetime
from typing import Any, Final

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

from hardcase_provider.rest import url_of

CONNECTION: Final = "hardcase_mlflow"
# As components/record/step.py says them.
EXPERIMENT: Final = "hardcase-evaluations"
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
        """Its answer; empty if there is no such thing."""
        answer = self._client.request(method, path, **sent)
        if answer.status_code == httpx.codes.NOT_FOUND and "RESOURCE_DOES_NOT_EXIST" in answer.text:
            return {}
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def registered_since(model: str, moment: str) -> dict[str, Any]:
    """The newest version registered since then, with the gate's verdict; empty if there is none or nobody to ask.

    Args:
        model: name of the registered model.
        moment: ISO 8601, when the run was created.
    """
    try:
        mlflow = MLflow()
    except AirflowNotFoundException:
        logger.info("verdict and version are not known here: there is no connection %s", CONNECTION)
        return {}
    query = {"filter": f"name='{model}'", "max_results": "20", "order_by": "creation_timestamp DESC"}
    found = mlflow.ask("GET", "/model-versions/search", params=query)
    since = datetime.fromisoformat(moment).timestamp() * 1000
    for version in found.get("model_versions") or []:
        tags = _tags(version)
        # A number without a verdict is one that a writer left empty, or is about to fill.
        if float(version["creation_timestamp"]) >= since and "verdict" in tags:
            return {
                "verdict": tags["verdict"],
                "version": int(version["version"]),
                "digest": tags.get("digest"),
                "report": f"{mlflow.url}/#/models/{model}/versions/{version['version']}",
            }
    return {}


def version_now(model: str) -> str:
    """`NAME:NUMBER` of what an alias, `NAME@ALIAS`, stands for; as it is where MLflow does not know that.

    Raises:
        AirflowFailException: there is nobody to ask, so that nobody would tell the evaluation's result either.
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


def evaluation_of(run_id: str) -> dict[str, Any]:
    """What the step `record` of a Kubeflow run told MLflow; see there.

    Raises:
        AirflowException: it told nothing.
    """
    mlflow = MLflow()
    experiment = mlflow.ask("GET", "/experiments/get-by-name", params={"experiment_name": EXPERIMENT})
    runs: list[dict[str, Any]] = []
    if experiment:
        place, tagged = experiment["experiment"]["experiment_id"], f"tags.`{RUN_TAG}` = '{run_id}'"
        query = {"experiment_ids": [place], "filter": tagged, "max_results": 1}
        runs = mlflow.ask("POST", "/runs/search", json=query).get("runs") or []
    if not runs:
        raise AirflowException(
            f"run {run_id} succeeded, but MLflow at {mlflow.url} was not told of it: see the log of its step `record`; "
            f"the result is in the store, evaluations/<model>/{run_id}.json"
        )
    result: dict[str, Any] = json.loads(_tags(runs[0]["data"])[RESULT_TAG])
    return result


def _tags(thing: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in thing.get("tags") or []}
