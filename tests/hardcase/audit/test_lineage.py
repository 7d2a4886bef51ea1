"""OpenLineage events: to a file by default, over HTTP by configuration, and never in the way of a step."""

import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hardcase.audit import lineage
from hardcase.audit.lineage import CONFIGURED, default_environment, emit, run_id

A = "a" * 64


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CONFIGURED:
        monkeypatch.delenv(name, raising=False)
    lineage._clients.cache_clear()


def configure(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def told(number: int) -> None:
    for turn in range(20):
        emit("START", "r", f"s{number}-{turn}")


def test_file_takes_the_events_of_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, default_environment(tmp_path))
    processes = [multiprocessing.get_context("spawn").Process(target=told, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    events = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert len({event["job"]["name"] for event in events}) == len(events) == 40


def test_nothing_is_said_where_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    emit("START", "r", "sft")
    assert capfd.readouterr() == ("", "")


class _Server(BaseHTTPRequestHandler):
    events: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
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
    emit("FAIL", "run-1", error="mine: out of memory")
    start, complete, fail = server.events
    assert [event["eventType"] for event in server.events] == ["START", "COMPLETE", "FAIL"]
    assert start["run"]["runId"] == complete["run"]["runId"] == run_id("run-1", "mine")
    assert start["job"] == {"namespace": "hardcase", "name": "retraining.mine", "facets": {}}
    parent = start["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == parent["root"]["run"]["runId"] == fail["run"]["runId"]
    (made,) = complete["outputs"]
    assert (made["namespace"], made["name"]) == ("hardcase", "mine.mined")
    assert made["facets"]["version"]["datasetVersion"] == "b" * 64
    digest = made["facets"]["hardcase_digest"]
    assert (digest["algorithm"], digest["value"]) == ("sha256", "b" * 64)
    assert digest["_producer"] == start["producer"]
    assert digest["_schemaURL"]
    assert fail["run"]["facets"]["errorMessage"]["message"] == "mine: out of memory"
    assert start["authorization"] == "Bearer k"
    assert start["schemaURL"].startswith("https://openlineage.io/spec/")


def test_server_that_fails_is_warned_of_and_nothing_else(
    server: type[_Server], caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 500
    emit("START", "run-1", "sft")
    (record,) = [record for record in caplog.records if record.name == lineage.__name__]
    assert "START of retraining.sft was not sent" in record.message


def test_server_that_is_not_there_costs_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configure(monkeypatch, {"OPENLINEAGE_URL": f"http://127.0.0.1:{port}"})
    configure(monkeypatch, default_environment(Path()))
    began = time.monotonic()
    emit("START", "run-1", "sft")
    emit("COMPLETE", "run-1", "sft")
    assert time.monotonic() - began < 30
    assert caplog.text.count("was not sent") == 1
