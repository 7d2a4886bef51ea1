"""Who is told of what: the webhook, and what MLflow knows of a Kubeflow run; neither breaks a task."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseHook
from hardcase_provider.alerts import failed, late, tell
from hardcase_provider.hooks import engine_of
from hardcase_provider.registry import registered_since


@pytest.fixture
def alerts(webhook: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    told = {"conn_type": "http", "host": webhook.url, "password": "sesame", "extra": {"path": "/hook"}}
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps(told))
    return webhook


def test_failure_names_dag_task_and_reason(alerts: Any) -> None:
    ti = SimpleNamespace(dag_id="retraining", task_id="kubeflow_run", log_url="https://airflow/log")
    failed({"ti": ti, "run_id": "manual__1", "exception": RuntimeError("failed at sft: out of memory")})
    [(path, token, body)] = alerts.heard
    assert (path, token) == ("/hook", "Bearer sesame")
    assert body == {
        "event": "failed",
        "text": "retraining failed at kubeflow_run: failed at sft: out of memory",
        "dag": "retraining",
        "run": "manual__1",
        "task": "kubeflow_run",
        "link": "https://airflow/log",
    }


def test_lateness_is_told_from_the_triggerer(alerts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(connection_id: str) -> Any:
        return BaseHook.get_connection(connection_id)

    monkeypatch.setattr(BaseHook, "aget_connection", get)
    asyncio.run(late("retraining", "1:00:00", context={"dag_run": {"dag_run_id": "weekly"}}))
    assert alerts.heard[0][2]["text"] == "retraining is late: run weekly has not ended within 1:00:00"


def test_alert_that_cannot_be_sent_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tell("held", "nobody listens")
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps({"conn_type": "http", "host": "http://127.0.0.1:9"}))
    tell("held", "it is down")


def test_version_a_run_registered_is_found_in_mlflow(webhook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_MLFLOW", json.dumps({"conn_type": "http", "host": webhook.url}))
    tags = [{"key": "verdict", "value": "promoted"}, {"key": "digest", "value": "d"}]
    version = {"version": "7", "creation_timestamp": 1_767_225_601_000, "tags": tags}
    empty = {"version": "8", "creation_timestamp": 1_767_225_602_000, "tags": []}
    webhook.answer = {"model_versions": [empty, version]}
    found = registered_since("image-screener", "2026-01-01T00:00:00Z")
    assert (found["verdict"], found["version"], found["digest"]) == ("promoted", 7, "d")
    assert registered_since("image-screener", "2026-01-02T00:00:00Z") == {}, "an older version is not this run's"


def test_without_mlflow_the_version_is_unknown() -> None:
    assert registered_since("image-screener", "2026-01-01T00:00:00Z") == {}


@pytest.mark.parametrize(("extra", "engine"), [({}, "kubeflow"), ({"engine": "local"}, "local")])
def test_connection_chooses_the_engine(extra: dict[str, str], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"conn_type": "kubeflow", "host": "h", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(told))
    assert engine_of() == engine


def test_without_a_connection_the_engine_is_this_machine() -> None:
    assert engine_of() == "local"
