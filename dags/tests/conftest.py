"""A server that speaks Kubeflow Pipelines' v2beta1 REST API, with faults to order, and what else the tests need."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hardcase_provider.hooks import KubeflowHook
from hardcase_provider.rest import Address

SPEC = {
    "root": {
        "inputDefinitions": {
            "parameters": {
                "profile": {"parameterType": "STRING", "defaultValue": "tiny"},
                "source": {"parameterType": "STRING", "isOptional": True},
                "seed": {"parameterType": "NUMBER_INTEGER", "isOptional": True},
            }
        }
    }
}


class Kubeflow:
    """What the server knows.

    Attributes:
        faults: one for each request to come whose "METHOD path" the expression matches: a status, "drop" (the
            connection, before it is done), "lose" (the answer, after it is done), or how many seconds to be slow.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self.faults: list[tuple[str, Any]] = []
        self.before_create: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self.url = ""

    def fault(self, pattern: str, *kinds: Any) -> None:
        """Order faults."""
        self.faults += [(pattern, kind) for kind in kinds]

    def due(self, request: str) -> Any:
        with self.lock:
            self.requests.append(request)
            for index, (pattern, kind) in enumerate(self.faults):
                if re.search(pattern, request):
                    del self.faults[index]
                    return kind
        return None

    def made(self, pattern: str) -> int:
        """How many such requests came."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            number = len(self.runs)
            moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
            run = {**body, "run_id": f"run-{number}", "state": "PENDING", "created_at": moment.isoformat()}
            self.runs[run["run_id"]] = run
            return run

    def end(self, run_id: str, state: str, **more: Any) -> None:
        """Let a run end."""
        self.runs[run_id] |= {"state": state, "finished_at": "2026-01-02T00:00:00Z", **more}

    def add_pipeline(self, name: str = "hardcase-retraining") -> dict[str, Any]:
        """A pipeline with one version."""
        pipeline = self.make_pipeline({"display_name": name})
        return self.make_version(pipeline["pipeline_id"], name)

    def make_pipeline(self, body: dict[str, Any]) -> dict[str, Any]:
        pipeline = {**body, "pipeline_id": f"pipeline-{len(self.pipelines)}", "created_at": "2026-01-01T00:00:00Z"}
        self.pipelines[pipeline["pipeline_id"]] = pipeline
        return pipeline

    def make_version(self, pipeline_id: str, name: str) -> dict[str, Any]:
        version = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": f"version-{len(self.versions)}",
            "display_name": name,
            "created_at": f"2026-01-01T00:00:{len(self.versions):02d}Z",
            "pipeline_spec": SPEC,
        }
        self.versions[version["pipeline_version_id"]] = version
        return version


class Handler(BaseHTTPRequestHandler):
    """Answers as the API server does, errors as google.rpc.Status."""

    protocol_version = "HTTP/1.1"
    kubeflow: Kubeflow

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = parts.path.removeprefix("/apis/v2beta1/")
        self.kubeflow.tokens.append(self.headers.get("Authorization", ""))
        fault = self.kubeflow.due(f"{self.command} {path}")
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, int) and fault >= 300:
            self.answer(fault, {"code": 2, "message": f"ordered {fault}"}, {"Retry-After": "0"} if fault == 429 else {})
            return
        if isinstance(fault, float):
            time.sleep(fault)
        with self.kubeflow.lock:
            status, content = self.found(path)
        if fault == "lose":
            self.close_connection = True
            return
        self.answer(status, content)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        with suppress(BrokenPipeError):  # the client did not wait for a slow one
            self.end_headers()
            self.wfile.write(data)

    def found(self, path: str) -> tuple[int, Any]:
        server = self.kubeflow
        if path == "healthz":
            return 200, {"multi_user": False}
        if path == "runs" and self.command == "POST":
            if server.before_create:
                call, server.before_create = server.before_create, None
                call()
            return 200, server.create_run(json.loads(self.content))
        if match := re.fullmatch(r"runs/([^/:]+)(:terminate)?", path):
            run = server.runs.get(match[1])
            if run is None:
                return 404, {"code": 5, "message": f"Run {match[1]} not found"}
            if match[2]:
                run["state"] = "CANCELING" if run["state"] == "RUNNING" else "CANCELED"
                return 200, {}
            return 200, run
        if path == "pipelines/upload_version":
            header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = BytesParser().parsebytes(header + self.content)
            assert [part.get_param("name", header="content-disposition") for part in form.get_payload()] == [
                "uploadfile"
            ]
            return 200, server.make_version(self.query["pipelineid"], self.query["name"])
        if path == "pipelines" and self.command == "POST":
            return 200, server.make_pipeline(json.loads(self.content))
        if path == "experiments" and self.command == "POST":
            name = f"experiment-{len(server.experiments)}"
            server.experiments[name] = {**json.loads(self.content), "experiment_id": name}
            return 200, server.experiments[name]
        if match := re.fullmatch(r"pipelines/([^/]+)/versions", path):
            of = {name: each for name, each in server.versions.items() if each["pipeline_id"] == match[1]}
            return 200, self.page("pipeline_versions", of)
        if path in ("runs", "pipelines", "experiments"):
            return 200, self.page(path, getattr(server, path))
        return 404, {"code": 5, "message": "Not Found"}

    def page(self, key: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Two a page, so that paging is seen to."""
        found = list(known.values())
        if "filter" in self.query:
            [predicate] = json.loads(self.query["filter"])["predicates"]
            assert predicate["operation"] == "EQUALS"
            found = [each for each in found if each.get(predicate["key"]) == predicate["stringValue"]]
        if self.query.get("sort_by") == "created_at desc":
            found.sort(key=lambda each: each["created_at"], reverse=True)
        start = int(self.query.get("page_token") or 0)
        more = {"next_page_token": str(start + 2)} if len(found) > start + 2 else {}
        return {key: found[start : start + 2], "total_size": len(found), **more}


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    known = Kubeflow()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"kubeflow": known}))
    server.daemon_threads = True
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield known
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(kubeflow: Kubeflow) -> Address:
    return Address(kubeflow.url, token="sesame", timeout=0.5, pause=0.01)  # noqa: S106


@pytest.fixture
def hook(address: Address) -> KubeflowHook:
    return KubeflowHook(address=address)


@pytest.fixture
def connected(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> Kubeflow:
    """The server as the connection `kubeflow_default`."""
    extra = {"timeout": 0.5, "pause": 0.01, "ui": "https://kubeflow.example/pipeline"}
    told = {"conn_type": "kubeflow", "host": kubeflow.url, "password": "sesame", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_KUBEFLOW_DEFAULT", json.dumps(told))
    return kubeflow


class Told:
    """A web server that is told things, and answers what it was given.

    Attributes:
        heard: path, bearer token and JSON of each request.
        answer: to all.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, Any]] = []
        self.answer: Any = {}
        self.url = ""

    def events(self) -> list[str]:
        return [body["event"] for _, _, body in self.heard]


@pytest.fixture
def webhook() -> Iterator[Told]:
    told = Told()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
            told.heard.append((self.path, self.headers.get("Authorization", ""), body))
            data = json.dumps(told.answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    server.shutdown()
    server.server_close()


class Instance:
    """As much of a task instance as the operators use."""

    dag_id, task_id = "retraining", "kubeflow_run"

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": Instance(), "run_id": "manual__1"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a `hardcase` of one's own, in sh."""

    def write(body: str) -> Path:
        path = tmp_path / "hardcase"
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("HARDCASE_BIN", str(path))
        return path

    return write
