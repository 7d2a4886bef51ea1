"""Airflow itself, its components apart, against the server: what a wait survives, what stops a run, what drift starts.

Four minutes.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dags.tests.conftest import evaluation, outcome
from tests.support.hostile import HostileFolder

BATCH = "procedural://?samples=80&seed=7"
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


class Airflow:
    """One that runs, over its REST API."""

    def __init__(self, home: Path, port: int, process: subprocess.Popen[str]) -> None:
        self.home, self.process = home, process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90)

    def log_in(self) -> None:
        passwords = json.loads((self.home / "simple_auth_manager_passwords.json.generated").read_text(encoding="utf-8"))
        answer = self.client.post("/auth/token", json={"username": "admin", "password": passwords["admin"]})
        self.client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"

    def get(self, path: str) -> Any:
        return self.client.get(f"/api/v2/{path}").raise_for_status().json()

    def switch_on(self, dag: str) -> None:
        self.client.patch(f"/api/v2/dags/{dag}", json={"is_paused": False}).raise_for_status()

    def start(self, dag: str = "retraining", **conf: Any) -> str:
        self.switch_on(dag)
        answer = self.client.post(f"/api/v2/dags/{dag}/dagRuns", json={"logical_date": None, "conf": conf})
        return str(answer.raise_for_status().json()["dag_run_id"])

    def state(self, run: str, task: str = "", dag: str = "retraining") -> str | None:
        path = f"dags/{dag}/dagRuns/{run}" + (f"/taskInstances/{task}" if task else "")
        return self.get(path.replace("+", "%2B"))["state"]

    def pid(self, name: str) -> int:
        return int((self.home / f"{name}.pid").read_text(encoding="utf-8"))

    def wait_until_deferred(self, times: int) -> None:
        """Wait until that many processes of deferred tasks have ended.

        Airflow 3.3.2 counts a task as failed that runs again when the executor reports the end of the process that
        deferred it (jobs/scheduler_job_runner.py, `process_executor_events`); on a busy machine that takes seconds.
        """
        log = self.home / "logs" / "scheduler.log"
        until(lambda: log.read_text(encoding="utf-8").count("final_state=deferred") >= times, 60)

    def announce(self, source: str, digest: str = "1") -> None:
        asset = next(each for each in self.get("assets")["assets"] if each["name"] == "new_data")
        news = {"asset_id": asset["id"], "extra": {"source": source, "digest": digest}}
        self.client.post("/api/v2/assets/events", json=news).raise_for_status()

    def clear(self, run: str, task: str) -> None:
        again = {"dry_run": False, "dag_run_id": run, "task_ids": [task], "include_downstream": True}
        again |= {"only_failed": False}
        self.client.post("/api/v2/dags/retraining/clearTaskInstances", json=again).raise_for_status()

    def runs(self) -> list[dict[str, Any]]:
        """The retrainings, the oldest first."""
        return list(self.get("dags/retraining/dagRuns?order_by=id")["dag_runs"])

    def busy(self) -> bool:
        """Whether a retraining is queued, or active."""
        return any(run["state"] in ("queued", "running") for run in self.runs())


@pytest.fixture
def airflow(kubeflow: Any, webhook: Any, mlflow: Any, tmp_path: Path) -> Iterator[Airflow]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extra = {"timeout": 5, "pause": 0.1}
    settings = {
        "AIRFLOW_HOME": str(tmp_path),
        "PORT": str(port),
        "HARDCASE_POLL_SECONDS": "1",
        "HARDCASE_DEADLINE_MINUTES": "0",
        # A killed scheduler takes its tasks with it: they are found dead after this time, not after five minutes.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW_CONN_KUBEFLOW_DEFAULT": json.dumps({"conn_type": "kubeflow", "host": kubeflow.url, "extra": extra}),
        "AIRFLOW_CONN_HARDCASE_ALERTS": json.dumps({"conn_type": "http", "host": webhook.url}),
    }
    hostile = HostileFolder(tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hardcase_provider.serve"],
        cwd=hostile.folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    served = Airflow(tmp_path, port, process)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Airflow is at"):
                break
        served.log_in()
        until(lambda: len(served.get("dags")["dags"]) == 4, 90)
        yield served
    finally:
        process.terminate()
        process.wait(60)
    assert hostile.imported == []


def until(true: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.5)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listening(leaders: list[int]) -> set[str]:
    """Addresses, in the kernel's hexadecimal, on which these process groups listen."""
    sockets = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) in leaders:
                sockets |= {str(each.readlink()) for each in (folder / "fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def check_clean_stop(airflow: Airflow) -> None:
    pids = [airflow.pid(name) for name in COMPONENTS]
    assert listening(pids) == {"0100007F"}, "on loopback only"
    airflow.process.terminate()
    airflow.process.wait(60)
    assert not any(alive(pid) for pid in pids), "a clean stop leaves nobody behind"


def test_wait_survives_scheduler_and_triggerer_and_the_run_dies_with_the_task(
    airflow: Airflow, kubeflow: Any, webhook: Any, mlflow: Any
) -> None:
    kubeflow.add_pipeline()
    run = airflow.start(profile="smoke", engine="kubeflow")
    until(lambda: airflow.state(run, "kubeflow_run") == "deferred", 90)
    kubeflow.runs["run-0"]["state"] = "RUNNING"
    killed = {name: airflow.pid(name) for name in ("scheduler", "triggerer")}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(airflow.pid(name) != pid for name, pid in killed.items()), 30)
    seen = kubeflow.made("GET runs/run-0")
    until(lambda: kubeflow.made("GET runs/run-0") > seen + 2, 120)
    assert list(kubeflow.runs) == ["run-0"]
    assert not kubeflow.made(":terminate")
    links = airflow.get(f"dags/retraining/dagRuns/{run}/taskInstances/kubeflow_run/links".replace("+", "%2B"))
    assert links["extra_link_entries"] if "extra_link_entries" in links else links["extra_links"]
    model = {"name": "image-screener", "version": 7, "alias": "champion", "digest": "d"}
    mlflow.runs["run-0"] = outcome(model=model, gate={"verdict": "promoted", "reasons": []})
    kubeflow.end("run-0", "SUCCEEDED")
    until(lambda: airflow.state(run) == "success", 90)
    [event] = airflow.get("assets/events")["asset_events"]
    assert (event["name"], event["extra"]["run_id"]) == ("image_screener", "run-0")
    assert (event["extra"]["version"], event["extra"]["verdict"]) == (7, "promoted")
    until(lambda: "late" in webhook.events(), 30)

    again = airflow.start(profile="smoke", engine="kubeflow")
    until(lambda: airflow.state(again) == "success", 90)
    assert airflow.state(again, "kubeflow_run") == "skipped", "nothing is new"

    airflow.announce("s3://bucket/march")
    until(lambda: "run-1" in kubeflow.runs, 90)
    assert kubeflow.runs["run-1"]["runtime_config"]["parameters"] == {"profile": "tiny", "source": "s3://bucket/march"}
    kubeflow.end("run-1", "SUCCEEDED")

    forced = airflow.start(profile="smoke", engine="kubeflow", force=True)
    until(lambda: airflow.state(forced, "kubeflow_run") == "deferred", 90)
    kubeflow.runs["run-2"]["state"] = "RUNNING"
    until(lambda: kubeflow.made("GET runs/run-2") > 1, 30)
    again = {"dry_run": False, "dag_run_id": forced, "task_ids": ["kubeflow_run"], "only_failed": False}
    airflow.client.post("/api/v2/dags/retraining/clearTaskInstances", json=again).raise_for_status()
    until(lambda: kubeflow.runs["run-2"]["state"] == "CANCELING", 60)
    stopped = {"state": "CANCELING", "update_time": datetime.now(UTC).isoformat()}
    kubeflow.end("run-2", "FAILED", state_history=[stopped])
    until(lambda: "run-3" in kubeflow.runs, 90)  # whether or not the cleared task had found run-2 before it was stopped
    until(lambda: airflow.state(forced, "kubeflow_run") == "deferred", 90)
    kubeflow.runs["run-3"]["state"] = "RUNNING"
    until(lambda: kubeflow.made("GET runs/run-3") > 1, 30)
    path = f"/api/v2/dags/retraining/dagRuns/{forced}/taskInstances/kubeflow_run".replace("+", "%2B")
    airflow.client.patch(path, json={"new_state": "failed"}).raise_for_status()
    until(lambda: kubeflow.runs["run-3"]["state"] == "CANCELING", 60)

    check_clean_stop(airflow)


def test_drift_on_kubeflow_starts_a_retraining_by_itself_and_a_refused_one_is_launched_once(
    airflow: Airflow, kubeflow: Any, mlflow: Any, webhook: Any
) -> None:
    kubeflow.add_pipeline()
    kubeflow.add_pipeline("hardcase-evaluation")
    airflow.switch_on("retraining")
    watch = airflow.start("drift_watch", engine="kubeflow", batches=BATCH)
    until(lambda: "run-0" in kubeflow.runs, 120)
    asked = {"model": "image-screener@champion", "source": BATCH}
    assert kubeflow.runs["run-0"]["runtime_config"]["parameters"] == asked
    mlflow.runs["run-0"] = evaluation(drifted=True)
    kubeflow.end("run-0", "SUCCEEDED")

    until(lambda: "run-1" in kubeflow.runs, 120)
    assert kubeflow.runs["run-1"]["display_name"].startswith("retraining-")
    assert airflow.state(watch, dag="drift_watch") == "success"
    [started] = airflow.get("dags/retraining/dagRuns")["dag_runs"]
    assert started["run_type"] == "asset_triggered"
    events = {event["name"]: event["extra"] for event in airflow.get("assets/events")["asset_events"]}
    assert events["drift_alarm"] == events["drift_report"]
    assert events["drift_alarm"]["drift"]["drifted"] and events["drift_alarm"]["report"].endswith("/details/run-0")

    error = {"step": "validate", "message": "row 7: no answer; add one", "exit_code": 2}
    mlflow.runs["run-1"] = outcome("failed", error=error)
    airflow.wait_until_deferred(2)
    kubeflow.end("run-1", "FAILED")
    path = f"dags/retraining/dagRuns/{started['dag_run_id']}/taskInstances/kubeflow_run"
    until(lambda: airflow.state(started["dag_run_id"], "kubeflow_run") in ("up_for_retry", "failed"), 120)
    assert airflow.state(started["dag_run_id"], "kubeflow_run") == "failed"
    assert list(kubeflow.runs) == ["run-0", "run-1"]
    log = json.dumps(airflow.get(f"{path}/logs/1".replace("+", "%2B")))
    assert "run run-1 failed at validate: row 7: no answer; add one" in log


# One takes a minute; `INTERLEAVINGS=10 make test-dags ARGS="-k interleaved"` runs ten.
@pytest.mark.parametrize("seed", range(int(os.environ.get("INTERLEAVINGS", "1"))))
def test_announcements_interleaved_with_pauses_restarts_and_clears_are_all_trained_on(
    seed: int, airflow: Airflow, kubeflow: Any, mlflow: Any
) -> None:
    chance = random.Random(seed)
    kubeflow.add_pipeline()
    announced, cleared = [], False
    airflow.switch_on("retraining")

    def end(state: str) -> None:
        for run_id, run in kubeflow.runs.items():
            if run["state"] not in ("SUCCEEDED", "FAILED"):
                error = {"step": "validate", "message": "row 7: no answer", "exit_code": 2}
                stopped = run["state"] == "CANCELING"
                mlflow.runs[run_id] = outcome("failed", error=error) if state == "FAILED" else outcome()
                history = [{"state": "CANCELING", "update_time": datetime.now(UTC).isoformat()}] if stopped else []
                kubeflow.end(run_id, "FAILED" if stopped else state, state_history=history)

    for step in range(12):
        act = "announce" if step % 3 == 0 else chance.choice(("pause", "kill", "clear", "succeed", "fail", "start"))
        if act == "announce":
            announced.append(f"s3://bucket/{seed}-{step}")
            airflow.announce(announced[-1])
        elif act == "pause":
            paused = {"is_paused": not airflow.get("dags/retraining")["is_paused"]}
            airflow.client.patch("/api/v2/dags/retraining", json=paused).raise_for_status()
        elif act == "kill":
            os.kill(airflow.pid(chance.choice(("scheduler", "triggerer"))), signal.SIGKILL)
        elif act == "clear" and (runs := airflow.runs()):
            airflow.clear(chance.choice(runs)["dag_run_id"], chance.choice(("plan", "kubeflow_run", "publish")))
            cleared = True
        elif act == "start":
            airflow.start()
        else:
            end("SUCCEEDED" if act == "succeed" else "FAILED")
        print(datetime.now(UTC).isoformat(), step, act)
        time.sleep(chance.choice((0, 1, 4, 8)))

    def settled() -> bool:
        end("SUCCEEDED")
        return not airflow.busy()

    airflow.switch_on("retraining")
    for _ in range(2):  # what failed waits for the next run, as that of the schedule
        until(settled, 400)
        airflow.start(engine="kubeflow")
    until(settled, 400)
    trained = [
        run["runtime_config"]["parameters"].get("source", "").split()
        for run in kubeflow.runs.values()
        if run["state"] == "SUCCEEDED"
    ]
    assert set(announced) <= {source for sources in trained for source in sources}
    assert cleared or all(sum(source in sources for sources in trained) == 1 for source in announced)
    asset = next(each for each in airflow.get("assets")["assets"] if each["name"] == "new_data")
    state = airflow.get(f"assets/{asset['id']}/state-store/trained")["value"]
    assert len(state["seen"]) == len(announced)
