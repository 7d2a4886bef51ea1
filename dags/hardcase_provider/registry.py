"""What a Kubeflow run registered, from MLflow's REST API: Kubeflow's own tells no results.

Optional: a connection `hardcase_mlflow` (type http, a password is sent as bearer token).
"""

import logging
from datetime import datetime
from typing import Any, Final

CONNECTION: Final = "hardcase_mlflow"
logger = logging.getLogger(__name__)


def registered_since(model: str, moment: str) -> dict[str, Any]:
    """The newest version registered since then, with the gate's verdict; empty if there is none or nobody to ask.

    Args:
        model: name of the registered model.
        moment: ISO 8601, when the run was created.
    """
    import httpx
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(CONNECTION)
    except AirflowNotFoundException:
        logger.info("verdict and version are not known here: there is no connection %s", CONNECTION)
        return {}
    host = connection.host if "://" in connection.host else f"{connection.schema or 'https'}://{connection.host}"
    url = host.rstrip("/") + (f":{connection.port}" if connection.port else "")
    headers = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
    query = {"filter": f"name='{model}'", "max_results": "1", "order_by": "creation_timestamp DESC"}
    answer = httpx.get(f"{url}/api/2.0/mlflow/model-versions/search", params=query, headers=headers, timeout=30)
    answer.raise_for_status()
    since = datetime.fromisoformat(moment).timestamp() * 1000
    for version in answer.json().get("model_versions") or []:
        if float(version["creation_timestamp"]) >= since:
            tags = {tag["key"]: tag["value"] for tag in version.get("tags") or []}
            return {
                "verdict": tags.get("verdict"),
                "version": int(version["version"]),
                "digest": tags.get("digest"),
                "report": f"{url}/#/models/{model}/versions/{version['version']}",
            }
    return {}
