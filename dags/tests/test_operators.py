"""The operators: launch, defer, resume; a process of this machine; what becomes of either when the task is killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from hardcase_provider import get_provider_info
from hardcase_provider.operators import LINK_KEY, KubeflowRunLink, KubeflowRunOperator, LocalRunOperator

Program = Callable[[str], Path]


def operator(**more: Any) -> KubeflowRunOperator:
    given = {"key": "retraining-1", "pipeline": "hardcase-retraining", "parameters": {"profile": "tiny"}, **more}
    return KubeflowRunOperator(task_id="kubeflow_run", **given)


def deferred(task: KubeflowRunOperator, context: dict[str, Any]) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


def ended(state: str, **more: Any) -> dict[str, Any]:
    run = {"run_id": "run-0", "state": state, "failures": [], "told": "", "link": "https://kubeflow/run-0", **more}
    return {"status": "ended", "run": run}


def test_launch_defers_and_links_to_the_run(connected: Any, context: dict[str, Any]) -> None:
    connected.add_pipeline()
    waiting = deferred(operator(), context)
    assert waiting.method_name == "resumed"
    assert waiting.trigger.serialize()[1]["run_id"] == "run-0"
    link = "https://kubeflow.example/pipeline/#/runs/details/run-0"
    assert context["ti"].pushed[LINK_KEY] == link, "the link must be there while it runs"
    assert KubeflowRunLink().xcom_key == LINK_KEY


def test_retried_task_follows_the_run_it_started(connected: Any, context: dict[str, Any]) -> None:
    connected.add_pipeline()
    first, second = deferred(operator(), context), deferred(operator(), context)
    assert first.kwargs == second.kwargs == {"run_id": "run-0"}
    assert connected.made("POST runs$") == 1


def test_run_that_succeeded_already_is_the_result(connected: Any, context: dict[str, Any]) -> None:
    connected.add_pipeline()
    deferred(operator(), context)
    connected.end("run-0", "SUCCEEDED")
    assert operator().execute(context)["state"] == "SUCCEEDED"


def test_resumed_with_the_result(connected: Any, context: dict[str, Any]) -> None:
    result = operator().resumed(context, run_id="run-0", event=ended("SUCCEEDED"))
    assert result["run_id"] == "run-0"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ended("FAILED", failures=[{"step": "sft", "message": "out of memory"}]), "run-0 failed at sft: out of memory"),
        (ended("FAILED", told="workflow error"), "failed at workflow error"),
        (ended("CANCELED"), "run-0 was cancelled in Kubeflow"),
        ({"status": "vanished", "message": "HTTP 404"}, "run-0 is gone from Kubeflow"),
        ({"status": "lost", "message": "HTTP 500"}, "gave no answer for 1:00:00: HTTP 500"),
    ],
)
def test_end_without_a_result_fails_the_task_and_says_which(
    connected: Any, context: dict[str, Any], event: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowException, match=message):
        operator().resumed(context, run_id="run-0", event=event)


def test_run_that_takes_too_long_is_stopped(connected: Any, context: dict[str, Any]) -> None:
    connected.create_run({})
    with pytest.raises(AirflowFailException, match="took more than 1:00:00"):
        operator(limit=timedelta(hours=1)).resumed(context, run_id="run-0", event={"status": "late"})
    assert connected.runs["run-0"]["state"] == "CANCELED"


def test_task_killed_before_it_was_deferred_stops_the_run(connected: Any, context: dict[str, Any]) -> None:
    connected.add_pipeline()
    task = operator()
    task.on_kill()
    deferred(task, context)
    task.on_kill()
    assert connected.runs["run-0"]["state"] == "CANCELED"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_launch_is_not_tried_again(connected: Any, context: dict[str, Any], status: int) -> None:
    connected.add_pipeline()
    connected.fault("POST runs$", status)
    with pytest.raises(AirflowFailException, match=f"HTTP {status}"):
        operator().execute(context)


def test_missing_pipeline_is_said(connected: Any, context: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="no pipeline 'hardcase-retraining'"):
        operator().execute(context)


def local(*arguments: str) -> LocalRunOperator:
    return LocalRunOperator(task_id="local_run", arguments=["run", *arguments])


def test_local_engine_gives_back_the_summary(program: Program, context: dict[str, Any]) -> None:
    program("""echo "training" >&2; echo '{"run_id": "r", "arguments": "'"$*"'", "who": "'"$HARDCASE_WHO"'"}'""")
    result = local("--profile=smoke").execute(context)
    assert result["arguments"] == "run --profile=smoke --json"
    assert result["who"] == "airflow retraining manual__1"
    assert result["exit_code"] == 0


def test_airflow_s_secrets_do_not_reach_the_process(
    program: Program, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("HARDCASE_HOME", "/kept")
    program("""echo '{"found": "'"$AIRFLOW__CORE__FERNET_KEY$HARDCASE_HOME"'"}'""")
    assert local().execute(context)["found"] == "/kept"


def test_run_held_by_the_gate_is_a_result(program: Program, context: dict[str, Any]) -> None:
    program("""echo '{"gate": {"verdict": "held"}}'; exit 3""")
    assert local().execute(context)["exit_code"] == 3


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("""echo '{"error": {"message": "no memory", "step": "sft"}}'; exit 1""", AirflowException, "sft: no memory"),
        ("""echo '{"error": {"message": "no such profile"}}'; exit 2""", AirflowFailException, "no such profile"),
        ("echo words; exit 1", AirflowException, "ended with 1 and printed no result"),
        ("exit 0", AirflowException, "ended with 0 and printed no result"),
        ("kill -9 $$", AirflowException, "stopped by SIGKILL"),
    ],
)
def test_broken_run_fails_the_task_with_its_message(
    program: Program, context: dict[str, Any], body: str, kind: type, message: str
) -> None:
    program(body)
    with pytest.raises(AirflowException, match=message) as raised:
        local().execute(context)
    assert type(raised.value) is kind, "a fault of the input must not be tried again, another must"


def test_missing_program_is_said(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_BIN", "/nowhere/hardcase")
    with pytest.raises(AirflowFailException, match="/nowhere/hardcase: no such program; set HARDCASE_BIN"):
        local().execute(context)


def test_killed_task_ends_the_process_and_its_steps(program: Program, context: dict[str, Any], tmp_path: Path) -> None:
    program(f"sleep 60 & echo $! > {tmp_path}/step; echo $$ > {tmp_path}/leader; wait")
    task = local()
    threading.Thread(target=_when_there, args=(tmp_path / "leader", task.on_kill)).start()
    with pytest.raises(AirflowException, match="SIGTERM"):
        task.execute(context)
    for name in ("leader", "step"):
        assert _gone(int((tmp_path / name).read_text(encoding="utf-8"))), name


def test_process_that_ignores_the_polite_signal_is_ended(
    program: Program, context: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardcase_provider.operators.SECONDS_TO_END", 0.3)
    program(f"trap '' TERM; echo $$ > {tmp_path}/leader; while :; do sleep 0.1; done")
    task = local()
    threading.Thread(target=_when_there, args=(tmp_path / "leader", task.on_kill)).start()
    with pytest.raises(AirflowException, match="SIGKILL"):
        task.execute(context)


def test_provider_says_what_airflow_asks() -> None:
    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_knows_the_connection_type_and_the_link() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.hooks["kubeflow"].hook_class_name == "hardcase_provider.hooks.KubeflowHook"
    assert "hardcase_provider.operators.KubeflowRunLink" in manager.extra_links_class_names


def _when_there(path: Path, act: Callable[[], None]) -> None:
    while not (path.is_file() and path.read_text(encoding="utf-8").strip()):
        time.sleep(0.02)
    act()


def _gone(pid: int) -> bool:
    for _ in range(100):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            if state != "Z":
                time.sleep(0.05)
                continue
        return True
    os.kill(pid, signal.SIGKILL)
    return False
