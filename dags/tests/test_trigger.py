"""The trigger as the triggerer treats it: made from what it serialized, anew in the middle, killed by a user or not."""

import asyncio
import json
import time
from typing import Any

import pytest
from airflow.sdk import BaseHook
from airflow.sdk._shared.module_loading import import_string
from hardcase_provider.triggers import STOPPING, KubeflowRunTrigger
from structlog.testing import capture_logs

from dags.tests.conftest import recorded

LINK = "https://kubeflow.example/pipeline/#/runs/details/run-0"


@pytest.fixture(autouse=True)
def connection_without_a_supervisor(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(connection_id: str) -> Any:
        return BaseHook.get_connection(connection_id)

    monkeypatch.setattr(BaseHook, "aget_connection", get)


def trigger(**more: Any) -> KubeflowRunTrigger:
    given = {"poll": 0.02, "end_by": time.time() + 20, "patience": 5.0, **more}
    return KubeflowRunTrigger(connection_id="kubeflow_default", run_id="run-0", **given)


async def fired(waiting: KubeflowRunTrigger) -> dict[str, Any]:
    async for event in waiting.run():
        return event.payload
    raise AssertionError("it ended without an event")


def soon(waiting: KubeflowRunTrigger) -> dict[str, Any]:
    return asyncio.run(asyncio.wait_for(fired(waiting), 15))


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELED"])
def test_end_of_the_run_is_told_with_its_state(connected: Any, state: str) -> None:
    connected.create_run({"display_name": "key"})
    connected.end("run-0", state)
    event = soon(trigger())
    assert (event["status"], event["run"]["state"]) == ("ended", state)
    assert event["run"]["link"] == LINK
    json.dumps(event)


def test_trigger_made_anew_in_the_middle_goes_on(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.runs["run-0"]["state"] = "RUNNING"

    async def restarted() -> dict[str, Any]:
        first = asyncio.create_task(fired(trigger()))
        while connected.made("GET runs/run-0") < 2:
            await asyncio.sleep(0.01)
        first.cancel()
        path, kwargs = trigger().serialize()
        second = asyncio.create_task(fired(import_string(path)(**json.loads(json.dumps(kwargs)))))
        seen = connected.made("GET runs/run-0")
        while connected.made("GET runs/run-0") < seen + 2:
            await asyncio.sleep(0.01)
        connected.end("run-0", "SUCCEEDED")
        return await second

    assert asyncio.run(asyncio.wait_for(restarted(), 15))["run"]["state"] == "SUCCEEDED"
    assert not connected.made(":terminate"), "a restart of the triggerer must not stop the run"


@pytest.mark.parametrize("fault", [401, 403, 404, 409, 429, 500, "drop", 0.8])
def test_faults_in_between_do_not_end_the_wait(connected: Any, fault: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.end("run-0", "SUCCEEDED")
    connected.fault("GET runs/run-0", fault, fault)
    assert soon(trigger())["status"] == "ended"


def test_run_that_vanished_is_told_apart(connected: Any) -> None:
    event = soon(trigger())
    assert event["status"] == "vanished"
    assert "HTTP 404" in event["message"]


@pytest.mark.parametrize(("fault", "word"), [(401, "token"), (500, "HTTP 500"), ("drop", "the connection broke")])
def test_kubeflow_that_stays_silent_is_given_up(connected: Any, fault: Any, word: str) -> None:
    connected.fault("GET runs/run-0", *[fault] * 500)
    event = soon(trigger(patience=0.3))
    assert event["status"] == "lost"
    assert word in event["message"]


def test_run_that_takes_too_long_is_told(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    assert soon(trigger(end_by=time.time() - 1)) == {"status": "late"}


def test_user_who_kills_the_waiting_task_stops_the_run(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.runs["run-0"]["state"] = "RUNNING"
    connected.fault("POST runs/run-0:terminate", 500)
    asyncio.run(trigger().on_kill())
    assert connected.runs["run-0"]["state"] == "CANCELING"


def test_stop_survives_the_triggerer_s_repeated_cancellation(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.runs["run-0"]["state"] = "RUNNING"
    connected.fault("POST runs/run-0:terminate", 503, 503, 503)

    async def cancelled_again() -> None:
        killed = asyncio.create_task(trigger().on_kill())
        while not connected.made(":terminate"):
            await asyncio.sleep(0.001)
        killed.cancel("__airflow_user_action__")
        with pytest.raises(asyncio.CancelledError):
            await killed
        await asyncio.gather(*STOPPING)

    asyncio.run(asyncio.wait_for(cancelled_again(), 15))
    assert connected.runs["run-0"]["state"] == "CANCELING"
    assert not STOPPING


def test_stop_with_a_token_that_is_being_rotated_is_done(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.runs["run-0"]["state"] = "RUNNING"
    connected.fault("POST runs/run-0:terminate", 401, 401, 401)
    asyncio.run(trigger().on_kill())
    assert connected.runs["run-0"]["state"] == "CANCELING"


@pytest.mark.parametrize("fault", [401, 403, "drop"])
def test_stop_that_fails_is_told_with_the_link(connected: Any, fault: Any) -> None:
    connected.create_run({"display_name": "key"})
    connected.fault("POST runs/run-0:terminate", *[fault] * 20)
    with capture_logs() as logs:
        asyncio.run(trigger().on_kill())
    [told] = [each for each in logs if each["log_level"] == "error"]
    assert f"run run-0 is still active; terminate it in Kubeflow: {LINK} (" in told["event"]


def test_absent_api_is_told_with_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"pause": 0.001, "ui": "https://kubeflow.example/pipeline"}
    absent = {"conn_type": "kubeflow", "host": "http://127.0.0.1:9", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(absent))
    with capture_logs() as logs:
        asyncio.run(trigger().on_kill())
    assert [LINK in each["event"] for each in logs if each["log_level"] == "error"] == [True]


def test_run_that_ended_meanwhile_is_no_failed_stop(connected: Any) -> None:
    connected.fault("POST runs/run-0:terminate", recorded("run-terminate-ended")["status"])
    with capture_logs() as logs:
        asyncio.run(trigger().on_kill())
    assert [each["log_level"] for each in logs] == ["info", "info"]


def test_log_says_once_what_is_at_work(connected: Any) -> None:
    connected.create_run({"display_name": "key"})
    going = recorded("run-terminated-state-canceling")["body"]["run_details"]
    connected.runs["run-0"] |= {"state": "RUNNING", "run_details": going}
    looks = 0

    def look(run: dict[str, Any]) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            connected.end("run-0", "SUCCEEDED")

    connected.before_get = look
    with capture_logs() as logs:
        event = soon(trigger(steps={"work": False, "tell": True}))
    assert [each["event"] for each in logs] == ["run run-0: RUNNING, at work: work"]
    assert event["run"]["steps"] == {"work": "succeeded", "tell": "succeeded"}, "details that are frozen"


def test_a_hundred_runs_are_waited_for_at_once(connected: Any) -> None:
    connected.create_run({"display_name": "key"})

    async def many() -> list[dict[str, Any]]:
        waits = [asyncio.create_task(fired(trigger(poll=0.2))) for _ in range(100)]
        await asyncio.sleep(0.5)
        connected.end("run-0", "SUCCEEDED")
        return await asyncio.gather(*waits)

    assert len(asyncio.run(asyncio.wait_for(many(), 60))) == 100
