"""Runs in a real MLflow: found by their id, as they ended last, and no error where MLflow cannot be reached."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from hardcase.registry.tracking import RESULT_TAG, RUN_TAG
from hardcase.report.summary import EXPERIMENT, StepOutcome, show_record, summarise_run


def record(error: dict[str, Any] | None) -> dict[str, Any]:
    asked = {"pipeline": "retraining", "profile": "smoke", "source": "", "seed": 0, "settings": {}}
    return summarise_run("run-1", asked, "file:///store", {"sft": StepOutcome("failed")}, {}, error)


def test_a_run_that_was_retried_is_shown_as_it_ended_last(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    show_record(record({"step": "sft", "message": "x" * 9000, "exit_code": 1}), uri)
    show_record(record(None), uri)
    client = MlflowClient(uri)
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (run,) = client.search_runs([place], f"tags.`{RUN_TAG}` = 'run-1'")
    assert json.loads(run.data.tags[RESULT_TAG])["error"] is None


def test_a_long_message_stays_json(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    show_record(record({"step": "sft", "message": "x" * 9000, "exit_code": 2}), uri)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    error = json.loads(run.data.tags[RESULT_TAG])["error"]
    assert (error["step"], error["exit_code"], len(error["message"])) == ("sft", 2, 500)


def test_a_server_that_is_away_is_a_warning(
    unused_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        show_record(record(None), f"http://127.0.0.1:{unused_port}")
    assert "MLflow does not show run run-1" in caplog.text
