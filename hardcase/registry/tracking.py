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
    name: str,
    result: Mapping[str, Any],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Show how a run ended last in MLflow; that MLflow cannot be reached is a warning.

    Args:
        tracking_uri: of MLflow's database or server.
        experiment: name of the experiment, made if there is none.
        run_id: the tag by which the run is found.
        name: of the run, for people.
        result: JSON that programs read; MLflow takes up to 8,000 characters of a tag.
        tags: what else to tag it with.
        metrics: numbers by name.
    """
    try:
        _show(tracking_uri, experiment, run_id, name, result, tags, metrics)
    except Exception as error:  # MLflow's own, of any kind
        logger.warning("MLflow does not show run %s: %s", run_id, " ".join(str(error).split())[:300])


def _show(
    tracking_uri: str,
    experiment: str,
    run_id: str,
    name: str,
    result: Mapping[str, Any],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment)
    every = {**tags, RUN_TAG: run_id, RESULT_TAG: json.dumps(result)}
    shown = client.search_runs([place], f"tags.`{RUN_TAG}` = '{run_id}'")
    number = (shown[0] if shown else client.create_run(place, run_name=name)).info.run_id
    for key, value in every.items():
        client.set_tag(number, key, value)
    for metric, score in metrics.items():
        client.log_metric(number, metric, score)
    client.set_terminated(number)
