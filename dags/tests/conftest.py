"""What the tests of Airflow's side need."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hardcase_provider.hooks import KubeflowHook

from hardcase.kubeflow.address import Address, find_address
from tests.support.kubeflow_server import Kubeflow, kubeflow_server

RECORDINGS = Path(__file__).resolve().parents[2] / "tests" / "recordings" / "kubeflow"


def recorded(name: str) -> dict[str, Any]:
    """What a real Kubeflow answered: `status`, `headers`, `body`; see the README there."""
    answer: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))["response"]
    return answer


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with kubeflow_server() as known:
        yield known


@pytest.fixture
def address(kubeflow: Kubeflow) -> Address:
    return find_address(kubeflow.url, token="sesame", timeout=0.5, pause=0.01)  # noqa: S106


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

    with served(Listener) as told.url:
        yield told


class Tracked:
    """As much of MLflow's REST API as is asked, in the form in which MLflow 3 answers.

    Attributes:
        runs: records of runs, by Kubeflow's id of the run.
        champion: number of the version; unknown if 0.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.champion = 0
        self.url = ""

    def answer(self, path: str, query: dict[str, str], body: Any) -> Any:
        if path == "experiments/get-by-name" and self.runs and query["experiment_name"] == "hardcase-runs":
            return {"experiment": {"experiment_id": "id of hardcase-runs", "lifecycle_stage": "active"}}
        if path == "runs/search":
            [run_id] = re.fullmatch("tags.`hardcase.run` = '(.*)'", body["filter"]).groups()  # type: ignore[union-attr]
            if run_id not in self.runs or body["experiment_ids"] != ["id of hardcase-runs"]:
                return {}
            told = {"hardcase.run": run_id, "hardcase.result": json.dumps(self.runs[run_id])}
            tags = [{"key": key, "value": value} for key, value in told.items()]
            return {"runs": [{"info": {"run_id": "0", "status": "FINISHED"}, "data": {"tags": tags}}]}
        if path == "registered-models/alias" and self.champion:
            return {"model_version": {"name": query["name"], "version": str(self.champion), "aliases": ["champion"]}}
        return None


def outcome(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    """The record of a retraining, as its step `conclude` puts it into MLflow's tag."""
    return {
        **{"run_id": "run-0", "pipeline": "retraining", "status": status, "error": None, "model": None, "gate": None},
        **{"snapshot": None, "samples": None, "evaluation": None, "drift": None, "scores": None, **more},
    }


def evaluation(drifted: bool = False, **more: Any) -> dict[str, Any]:
    """The record of an evaluation."""
    interval = [0.56, 0.64]
    scores = {"overall": 0.6, "exact_match": 0.6, "intervals": {"overall": interval, "exact_match": interval}}
    test = {"name": "answer size", "drifted": drifted, "statistic": 4.0, "p_value": 0.0001, "threshold": 0.001}
    calm = {**test, "name": "overall", "drifted": False, "reference": 0.61, "current": 0.6}
    return outcome(
        "evaluated",
        pipeline="evaluation",
        model={"name": "image-screener", "version": 7, "alias": None, "digest": "d" * 64},
        snapshot="5" * 64,
        samples=200,
        scores={"chance": scores, "sft": None, "final": scores},
        drift={
            "drifted": drifted,
            "reference": "4" * 64,
            "tests": [{**test, "reference": 1.2, "current": 2.4}, calm],
        },
        evaluation="e" * 64,
        **more,
    )


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracked]:
    """The server of the connection `hardcase_mlflow`."""
    tracked = Tracked()

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
            path = parts.path.removeprefix("/api/2.0/mlflow/")
            found = tracked.answer(path, {key: each[0] for key, each in parse_qs(parts.query).items()}, body)
            missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}
            data = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    with served(Answering) as tracked.url:
        told = {"conn_type": "http", "host": tracked.url}
        monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_MLFLOW", json.dumps(told))
        yield tracked


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """On loopback; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
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
