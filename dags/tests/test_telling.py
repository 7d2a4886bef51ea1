"""Who is told of what: the webhook, and what MLflow knows of a Kubeflow run; neither breaks a task."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseHook
from hardcase_provider.alerts import alert, alert_failure, alert_lateness
from hardcase_provider.hooks import choose_engine

from dags.tests.conftest import outcome
from dags.tests.test_dags import dag


@pytest.fixture
def alerts(webhook: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    told = {"conn_type": "http", "host": webhook.url, "password": "sesame", "extra": {"path": "/hook"}}
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps(told))
    return webhook


def test_failure_names_dag_task_and_reason(alerts: Any) -> None:
    ti = SimpleNamespace(dag_id="retraining", task_id="kubeflow_run", log_url="https://airflow/log")
    alert_failure({"ti": ti, "run_id": "manual__1", "exception": RuntimeError("failed at sft: out of memory")})
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
    asyncio.run(
        alert_lateness("retraining", "1:00:00", context={"dag_run": {"dag_run_id": "weekly", "end_date": None}})
    )
    assert alerts.heard[0][2]["text"] == "retraining is late: run weekly has not ended within 1:00:00"


@pytest.mark.parametrize("state", ["failed", "success"])
def test_run_that_has_ended_is_not_called_late(alerts: Any, state: str) -> None:
    run = {"dag_run_id": "weekly", "state": state, "end_date": "2026-03-02T03:00:00Z"}
    asyncio.run(alert_lateness("retraining", "1:00:00", context={"dag_run": run}))
    assert alerts.heard == []


def test_alert_that_cannot_be_sent_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alert("rejected", "nobody listens")
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps({"conn_type": "http", "host": "http://127.0.0.1:9"}))
    alert("rejected", "it is down")


PROMOTED = outcome(
    model={"name": "image-screener", "version": 7, "alias": "champion", "digest": "d"},
    gate={"verdict": "promoted", "reasons": ["better"]},
)


def publish(run_id: str) -> dict[str, Any]:
    """The extra of the event after that run on Kubeflow."""
    module = dag("retraining").module
    xcoms = {"kubeflow_run": {"run_id": run_id, "link": f"https://kubeflow/{run_id}", "created_at": "2026-01-01"}}
    outlets = {module.MODEL: SimpleNamespace(extra={})}
    planned = {"fingerprint": "f", "parameters": {"source": "s3://bucket/march"}, "taken": None}
    ti = SimpleNamespace(xcom_pull=lambda task_ids, key="": planned[key] if key else xcoms.get(task_ids))
    state: dict[str, Any] = {}
    states = dict.fromkeys((module.NEW_DATA, module.MODEL), SimpleNamespace(get=state.get, set=state.__setitem__))
    assert module.publish.function(ti, outlets, states) == outlets[module.MODEL].extra
    assert state == {"last": {"fingerprint": "f", "version": outlets[module.MODEL].extra["version"]}}
    extra: dict[str, Any] = outlets[module.MODEL].extra
    return extra


def test_event_names_the_version_that_its_own_run_registered(mlflow: Any) -> None:
    mlflow.runs["run-3"] = PROMOTED
    facts = publish("run-3")
    known = {name: value for name, value in facts.items() if value not in (None, {})}
    assert known == {
        "fingerprint": "f",
        "source": "s3://bucket/march",
        "engine": "kubeflow",
        "run_id": "run-3",
        "run": "https://kubeflow/run-3",
        "verdict": "promoted",
        "reasons": ["better"],
        "status": "succeeded",
        "model": "image-screener:7",
        "version": 7,
        "digest": "d",
        "report": "https://kubeflow/run-3",
    }


def test_event_never_names_another_run_s_version(mlflow: Any) -> None:
    mlflow.runs["run-4"] = PROMOTED  # of a run that began later and ended before
    mine = publish("run-3")
    assert (mine["run_id"], mine["report"]) == ("run-3", "https://kubeflow/run-3")
    assert [mine[name] for name in ("version", "digest", "verdict", "status")] == [None] * 4


def test_run_rejected_by_the_gate_is_told(mlflow: Any, alerts: Any) -> None:
    mlflow.runs["run-3"] = {**PROMOTED, "gate": {"verdict": "rejected", "reasons": ["worse"]}}
    publish("run-3")
    [(_, _, body)] = alerts.heard
    assert (body["event"], body["text"]) == ("rejected", "image-screener:7 was rejected by the gate")


def test_without_mlflow_the_version_is_unknown() -> None:
    assert publish("run-3")["version"] is None


@pytest.mark.parametrize(("extra", "engine"), [({}, "kubeflow"), ({"engine": "local"}, "local")])
def test_connection_chooses_the_engine(extra: dict[str, str], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"conn_type": "kubeflow", "host": "h", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(told))
    assert choose_engine("auto") == engine


def test_without_a_connection_the_engine_is_this_machine() -> None:
    assert choose_engine("auto") == "local"
