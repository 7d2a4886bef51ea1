"""The operators: launch, defer, resume; a process of this machine; what becomes of either when the task is killed."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from hardcase_provider import get_provider_info, operators
from hardcase_provider.operators import LINK_KEY, KubeflowRunLink, KubeflowRunOperator, LocalRunOperator

from dags.tests.conftest import outcome, recorded
from hardcase.kubeflow.runs import list_progress, summarise_run
from tests.support.hostile import HostileFolder

Program = Callable[[str], Path]


def operator(**more: Any) -> KubeflowRunOperator:
    given = {"key": "retraining-1", "pipeline": "hardcase-retraining", "parameters": {"profile": "tiny"}, **more}
    return KubeflowRunOperator(task_id="kubeflow_run", **given)


def deferred(task: KubeflowRunOperator, context: dict[str, Any]) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


def failure(step: str, message: str) -> dict[str, Any]:
    return {"step": step, "message": message, "refused": False}


def ended(state: str, **more: Any) -> dict[str, Any]:
    run = {"run_id": "run-0", "state": state, "steps": {}, "failure": None, "cancelled_at": ""}
    run["link"] = "https://kubeflow/run-0"
    return {"status": "ended", "run": {**run, **more}}


def ended_as(name: str, steps: list[str]) -> dict[str, Any]:
    """The event for a run that a real Kubeflow told of."""
    run = {**recorded(name)["body"], "run_id": "run-0"}
    progress = list_progress(run, dict.fromkeys(steps, False), {}, time.time())
    summary = summarise_run(run, progress, link="https://kubeflow/run-0", namespace="hardcase")
    return {"status": "ended", "run": summary}


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
    assert first.kwargs == {"run_id": "run-0", "adopted": 0}
    assert second.kwargs["run_id"] == "run-0"
    assert second.kwargs["adopted"] == pytest.approx(time.time(), abs=60)
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
        (ended("FAILED", failure=failure("sft", "no memory")), "run-0 failed at sft: no memory. https"),
        (ended("FAILED", failure=failure("", "its log: kubectl")), "run-0 failed: its log: k"),
        (ended_as("run-error-at-first-pod", ["work"]), "failed before its first step began: "),
        ({"status": "vanished", "message": "run run-0 is gone"}, "run run-0 is gone"),
        ({"status": "lost", "message": "HTTP 500"}, "gave no answer for 1:00:00: HTTP 500"),
    ],
)
def test_end_without_a_result_fails_the_task_and_says_which(
    connected: Any, context: dict[str, Any], event: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowException, match=message) as raised:
        operator().resumed(context, run_id="run-0", event=event)
    assert type(raised.value) is AirflowException, "it may be tried again"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ended_as("run-fail-state-02-failed", ["work"]), "failed at work: its log: kubectl -n hardcase logs -l pipel"),
        (ended_as("run-failed-refused-input", ["validate"]), "failed at validate: its log: kubectl"),
        (ended("SKIPPED"), "run-0 skipped: Kubeflow gives no reason"),
    ],
)
def test_run_that_may_have_refused_its_input_is_launched_once_where_nothing_tells(
    connected: Any, context: dict[str, Any], event: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowFailException, match=f"{message}.*Not started again, .* hardcase_mlflow or HARDCASE_ST"):
        operator().resumed(context, run_id="run-0", event=event)


@pytest.mark.parametrize("name", ["run-failed-refused-input", "run-8-shards-too-large"])
@pytest.mark.parametrize(("refused", "kind"), [(True, AirflowFailException), (False, AirflowException)])
def test_run_s_own_record_says_where_it_failed_and_whether_to_try_again(
    connected: Any, mlflow: Any, context: dict[str, Any], name: str, refused: bool, kind: type
) -> None:
    error = {"step": "validate", "message": "row 7: no answer; add one", "exit_code": 2 if refused else 1}
    mlflow.runs["run-0"] = outcome("failed", error=error)
    with pytest.raises(AirflowException, match="run-0 failed at validate: row 7: no answer; add one") as raised:
        operator().resumed(context, run_id="run-0", event=ended_as(name, ["ingest", "validate"]))
    assert type(raised.value) is kind, "a refused input is launched once"


def test_failure_is_told_where_mlflow_does_not_answer(
    connected: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_MLFLOW", json.dumps({"conn_type": "http", "host": "http://127.0.0.1:9"}))
    with pytest.raises(AirflowException, match="failed at validate: its log: kubectl"):
        operator().resumed(context, run_id="run-0", event=ended_as("run-failed-refused-input", ["validate"]))


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (ended_as("run-terminated-final", ["work"]), "cancelled"),
        (ended_as("run-terminated-final", ["work"]), ""),
        (ended("CANCELED", cancelled_at="2026-11-28T02:14:33Z"), ""),
        (ended("FAILED"), "cancelled"),  # its end came before Kubeflow wrote CANCELING into its history
    ],
)
def test_run_terminated_in_kubeflow_is_not_started_again(
    connected: Any, mlflow: Any, context: dict[str, Any], event: dict[str, Any], status: str
) -> None:
    if status:
        error = {"step": "work", "message": "cancelled", "exit_code": 1}
        mlflow.runs["run-0"] = outcome(status, error=error)
    with pytest.raises(AirflowFailException, match=r"run-0 was cancelled( at work)?\. h"):
        operator().resumed(context, run_id="run-0", event=event)
    assert not connected.made("POST runs$")


def test_cleared_task_that_found_the_run_before_it_was_stopped_starts_another(
    connected: Any, context: dict[str, Any]
) -> None:
    connected.add_pipeline()
    deferred(operator(), context)
    cleared = deferred(operator(), context)
    stopped = recorded("run-terminated-final")["body"]
    connected.end("run-0", "FAILED", state_history=stopped["state_history"])
    event = ended_as("run-terminated-final", ["work"])
    adopted = datetime.fromisoformat(event["run"]["cancelled_at"]).timestamp()
    for moment in (adopted + 3, adopted - 200):
        with pytest.raises(TaskDeferred) as again:
            operator().resumed(context, **{**cleared.kwargs, "adopted": moment}, event=event)
        assert again.value.kwargs["run_id"] == "run-1"
    with pytest.raises(AirflowFailException, match="was cancelled at work"):
        operator().resumed(context, **{**cleared.kwargs, "adopted": adopted - 3600}, event=event)


def test_no_field_of_the_operator_is_masked() -> None:
    from airflow.sdk._shared.secrets_masker import SecretsMasker

    masker = SecretsMasker()
    assert [name for name in KubeflowRunOperator.template_fields if masker.should_hide_value_for_key(name)] == []


def test_run_that_takes_too_long_is_stopped_and_not_started_again(connected: Any, context: dict[str, Any]) -> None:
    connected.create_run({})
    with pytest.raises(AirflowFailException, match="took more than 1:00:00"):
        operator(limit=timedelta(hours=1)).resumed(context, run_id="run-0", event={"status": "late"})
    assert connected.runs["run-0"]["state"] == "CANCELING"
    connected.end("run-0", "SUCCEEDED")
    with pytest.raises(AirflowFailException, match="took more than 1:00:00; it has ended since"):
        operator(limit=timedelta(hours=1)).resumed(context, run_id="run-0", event={"status": "late"})


def test_task_killed_before_it_was_deferred_stops_the_run(connected: Any, context: dict[str, Any]) -> None:
    connected.add_pipeline()
    task = operator()
    task.on_kill()
    deferred(task, context)
    task.on_kill()
    assert connected.runs["run-0"]["state"] == "CANCELING"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_launch_is_not_tried_again(connected: Any, context: dict[str, Any], status: int) -> None:
    connected.add_pipeline()
    connected.fault("POST runs$", status)
    with pytest.raises(AirflowFailException, match=f"HTTP {status}"):
        operator().execute(context)


def test_missing_pipeline_is_said(connected: Any, context: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="no pipeline 'hardcase-retraining'"):
        operator().execute(context)


def local(*arguments: str, **more: str) -> LocalRunOperator:
    return LocalRunOperator(task_id="local_run", arguments=["run", *arguments], **more)


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


def test_python_files_in_the_folder_of_a_local_run_are_not_executed(
    program: Program, context: dict[str, Any], tmp_path: Path
) -> None:
    hostile = HostileFolder(tmp_path / "data")
    program(f"""exec {sys.executable} -c 'import json, random; print(json.dumps({{"drawn": random.random()}}))'""")
    assert 0 <= local(folder=str(hostile.folder)).execute(context)["drawn"] < 1
    assert hostile.imported == []


def test_run_rejected_by_the_gate_is_a_result(program: Program, context: dict[str, Any]) -> None:
    program("""echo '{"gate": {"verdict": "rejected"}}'; exit 3""")
    assert local().execute(context)["exit_code"] == 3


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("""echo '{"error": {"message": "no memory", "step": "sft"}}'; exit 1""", AirflowException, "sft: no memory"),
        ("""echo '{"error": {"message": "no such profile"}}'; exit 2""", AirflowFailException, "no such profile"),
        ("echo words; exit 1", AirflowException, "ended with 1 and printed no result"),
        ("exit 0", AirflowException, "ended with 0 and printed no result"),
        ("kill -9 $$", AirflowException, "stopped by SIGKILL"),
        ("exit 143", AirflowException, "stopped by SIGTERM"),
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


def test_script_beside_airflow_s_interpreter_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's environment has the package, and so its script, without what the package needs."""
    for folder in ("airflow", "own"):
        (tmp_path / folder).mkdir()
        for name in ("hardcase", "python"):
            (tmp_path / folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
            (tmp_path / folder / name).chmod(0o755)
    monkeypatch.delenv("HARDCASE_BIN", raising=False)
    monkeypatch.setattr(operators, "REPOSITORY", tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "airflow" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}/airflow")
    assert operators.named_program() == ""
    monkeypatch.setenv("PATH", f"{tmp_path}/airflow:{tmp_path}/own")
    assert operators.named_program() == f"{tmp_path}/own/hardcase"


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
