"""What the tests of Airflow's side need."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hardcase_provider.hooks import KubeflowHook
from hardcase_provider.rest import Address

from tests.kubeflow_server import Kubeflow, kubeflow_server


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with kubeflow_server() as known:
        yield known


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
