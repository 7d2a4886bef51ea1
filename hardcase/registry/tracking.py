"""Runs as MLflow shows them: one MLflow run each, found by the id of the run. The store holds the record itself."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

RUN_TAG: Final = "hardcase.run"
RESULT_TAG: Final = "hardcase.result"
logger = logging.getLogger(__name__)


def show_run(
    tracking_uri: str,
    experiment: str,
    run_id: str,
    result: Mapping[str, Any],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Show how a run ended last in MLflow; that MLflow cannot be reached is a warning.

    `result` is JSON that programs read; MLflow takes up to 8,000 characters of a tag.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    try:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri)
        known = client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else client.create_experiment(experiment)
        shown = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
        number = (shown[0] if shown else client.create_run(experiment_id, run_name=run_id)).info.run_id
        for key, value in {**tags, RUN_TAG: run_id, RESULT_TAG: json.dumps(result)}.items():
            client.set_tag(number, key, value)
        for metric, score in metrics.items():
            client.log_metric(number, metric, score)
        client.set_terminated(number)
    except Exception as error:  # MLflow's own, of any kind
        logger.warning("MLflow does not show run %s: %s", run_id, " ".join(str(error).split())[:300])
