"""OpenLineage events: to a file by default, over HTTP by configuration, and never in the way of a step."""

import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

from hardcase.provenance import openlineage as lineage
from hardcase.provenance.openlineage import default_environment, emit, run_id

A = "a" * 64


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    lineage._client.cache_clear()
    lineage._given_up.clear()
    yield
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        del os.environ[name]  # the library copies OPENLINEAGE_URL into variables of its own


def configure(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def told(number: int) -> None:
    for turn in range(20):
        emit("FAIL", "r", f"s{number}-{turn}", error="x" * 30_000)  # more than a buffer


def told_and_killed() -> None:
    emit("START", "r", "sft", inputs={"ingest.snapshot": A})
    os.kill(os.getpid(), signal.SIGKILL)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "lineage.jsonl").read_text().splitlines()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_file_takes_the_events_of_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, default_environment(tmp_path))
    processes = [multiprocessing.get_context("spawn").Process(target=told, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    events = written(tmp_path)
    assert len({event["job"]["name"] for event in events}) == len(events) == 40


def test_launcher_tells_the_end_of_a_step_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, default_environment(tmp_path))
    step = multiprocessing.get_context("spawn").Process(target=told_and_killed)
    step.start()
    step.join()
    assert step.exitcode == -signal.SIGKILL
    emit("FAIL", "r", "sft", error="its process was killed")
    start, fail = written(tmp_path)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert (start["run"]["runId"], start["job"]) == (fail["run"]["runId"], fail["job"])


def test_each_run_of_one_launcher_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        with monkeypatch.context() as patch:
            configure(patch, default_environment(tmp_path / run))
            emit("START", run)
        (event,) = written(tmp_path / run)
        assert event["run"]["runId"] == run_id(run, None)


@pytest.mark.parametrize("configuration", [{}, {"OPENLINEAGE_DISABLED": "false"}, {"OPENLINEAGE_DISABLED": "true"}])
def test_nothing_is_said_where_nobody_listens(
    configuration: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, configuration)
    emit("START", "r", "sft")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("configuration", "default"),
    [
        ({}, True),
        ({"OPENLINEAGE_DISABLED": "false"}, True),
        ({"OPENLINEAGE_DISABLED": "true"}, False),
        ({"OPENLINEAGE_URL": "http://marquez:5000"}, False),
        ({"OPENLINEAGE_CONFIG": "openlineage.yml"}, False),
        ({"OPENLINEAGE__TRANSPORT": '{"type": "noop"}'}, False),
        ({"OPENLINEAGE__TRANSPORT__TYPE": "kafka"}, False),
    ],
)
def test_file_is_the_default_only_where_the_user_said_nothing(
    configuration: dict[str, str], default: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(monkeypatch, configuration)
    assert bool(default_environment(tmp_path)) is default


@pytest.mark.parametrize(
    "configuration",
    [
        {"OPENLINEAGE__TRANSPORT__TYPE": "no.such.Transport"},
        {"OPENLINEAGE__TRANSPORT__TYPE": "kafka"},
        {"OPENLINEAGE_URL": "no url"},
        {"OPENLINEAGE_CONFIG": "missing.yml"},
    ],
)
def test_wrong_configuration_is_warned_of_and_nothing_else(
    configuration: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure(monkeypatch, configuration)
    emit("START", "r", "sft")
    emit("COMPLETE", "r", "sft")
    assert len([warning for warning in warnings(caplog) if "was not sent" in warning]) == 1
    assert '"eventType"' not in capfd.readouterr().out


class _Server(BaseHTTPRequestHandler):
    events: list[dict[str, Any]]
    status = 200
    seconds = 0.0

    def do_POST(self) -> None:
        time.sleep(self.seconds)
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.events.append({**event, "authorization": self.headers.get("Authorization")})
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Server]]:
    handler = type("Handler", (_Server,), {"events": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=listening.serve_forever)
    thread.start()
    configure(monkeypatch, {"OPENLINEAGE_URL": f"http://127.0.0.1:{listening.server_address[1]}"})
    configure(monkeypatch, default_environment(Path()))
    yield handler
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_server_is_told_what_openlineage_asks_for(server: type[_Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "k")
    emit("START", "run-1", "mine", inputs={"ingest.snapshot": A})
    emit("COMPLETE", "run-1", "mine", inputs={"ingest.snapshot": A}, outputs={"mine.mined": "b" * 64})
    emit("FAIL", "run-1", error="mine: out of memory", inputs={"photos": ""})
    start, complete, fail = server.events
    assert [event["eventType"] for event in server.events] == ["START", "COMPLETE", "FAIL"]
    assert start["run"]["runId"] == complete["run"]["runId"] == run_id("run-1", "mine")
    assert UUID(start["run"]["runId"]).version == UUID(fail["run"]["runId"]).version == 5
    assert start["job"] == {"namespace": "hardcase", "name": "retraining.mine", "facets": {}}
    parent = start["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == parent["root"]["run"]["runId"] == fail["run"]["runId"]
    for job in (parent["job"], parent["root"]["job"]):
        assert (job["namespace"], job["name"]) == ("hardcase", "retraining")
    assert "parent" not in fail["run"]["facets"]
    assert fail["job"]["name"] == "retraining"
    (photos,) = fail["inputs"]
    assert (photos["namespace"], photos["name"], photos["facets"]) == ("hardcase", "photos", {})
    (read,), (made,) = complete["inputs"], complete["outputs"]
    assert start["inputs"] == [read]
    assert (read["name"], read["facets"]["version"]["datasetVersion"]) == ("ingest.snapshot", A)
    assert (made["namespace"], made["name"]) == ("hardcase", "mine.mined")
    digest = made["facets"]["version"]
    assert (digest["datasetVersion"], digest["_producer"]) == ("b" * 64, start["producer"])
    assert digest["_schemaURL"]
    error = fail["run"]["facets"]["errorMessage"]
    assert (error["message"], error["programmingLanguage"]) == ("mine: out of memory", "python")
    assert "stackTrace" not in error
    assert start["authorization"] == "Bearer k"
    assert start["schemaURL"].startswith("https://openlineage.io/spec/")


def test_what_arrives_is_what_the_library_takes_for_an_event(server: type[_Server]) -> None:
    emit("COMPLETE", "run-1", "mine", inputs={"ingest.snapshot": A}, outputs={"mine.mined": A})
    (event,) = server.events
    again = RunEvent(  # each of them checks its fields
        eventTime=event["eventTime"],
        producer=event["producer"],
        eventType=RunState[event["eventType"]],
        run=Run(**event["run"]),
        job=Job(**event["job"]),
        inputs=[InputDataset(**dataset) for dataset in event["inputs"]],
        outputs=[OutputDataset(**dataset) for dataset in event["outputs"]],
    )
    assert again.schemaURL == event["schemaURL"]
    assert event["eventTime"].endswith("+00:00")
    facets = [*event["run"]["facets"].values(), *event["outputs"][0]["facets"].values()]
    assert all(facet["_producer"] and ":" in facet["_schemaURL"] for facet in facets)


@pytest.mark.parametrize("status", [401, 500])
def test_server_that_refuses_is_warned_of_once_and_no_password_is_told(
    status: int, server: type[_Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = status
    url = os.environ["OPENLINEAGE_URL"].replace("//", "//me:hunter2@")
    configure(monkeypatch, {"OPENLINEAGE_URL": url, "OPENLINEAGE_API_KEY": "hunter3"})
    emit("START", "run-1", "sft")
    emit("COMPLETE", "run-1", "sft")
    (warning,) = warnings(caplog)
    assert "START of retraining.sft was not sent" in warning
    assert str(status) in warning
    assert "hunter" not in caplog.text


def test_server_that_is_slow_does_not_hold_the_step(
    server: type[_Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lineage, "PATIENCE", 0.3)
    server.seconds = 1.5
    began = time.monotonic()
    emit("START", "run-1", "sft")
    emit("COMPLETE", "run-1", "sft")
    assert time.monotonic() - began < 1.4
    (warning,) = warnings(caplog)
    assert "no answer in 0.3 s" in warning


def test_server_that_is_not_there_costs_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configure(monkeypatch, {"OPENLINEAGE_URL": f"http://127.0.0.1:{port}"})
    began = time.monotonic()
    emit("START", "run-1", "sft")
    emit("COMPLETE", "run-1", "sft")
    assert time.monotonic() - began < lineage.PATIENCE + 1
    (warning,) = warnings(caplog)
    assert "was not sent" in warning
