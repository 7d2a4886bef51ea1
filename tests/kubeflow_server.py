"""A server on loopback that speaks Kubeflow Pipelines' v2beta1 REST API, with faults to order.

Requests and answers are held against the models of upstream's own OpenAPI client. Both the tests of the command line
and those of Airflow's side, which have environments of their own, use it.
"""

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
# Of each listing: its place in `Kubeflow`, the id of its things, the model of one and of a page.
KINDS = {
    "runs": ("run_id", "V2beta1Run", "V2beta1ListRunsResponse"),
    "pipelines": ("pipeline_id", "V2beta1Pipeline", "V2beta1ListPipelinesResponse"),
    "experiments": ("experiment_id", "V2beta1Experiment", "V2beta1ListExperimentsResponse"),
    "recurring_runs": ("recurring_run_id", "V2beta1RecurringRun", "V2beta1ListRecurringRunsResponse"),
    "pipeline_versions": ("pipeline_version_id", "V2beta1PipelineVersion", "V2beta1ListPipelineVersionsResponse"),
}
Answer = tuple[int, Any]


@cache
def compiled(name: str) -> dict[str, Any]:
    """What the compiled pipeline of that name takes; that of the retraining for one that is not there."""
    path = PIPELINES / f"{name.removeprefix('hardcase-')}.yaml"
    text = (path if path.is_file() else PIPELINES / "retraining.yaml").read_text(encoding="utf-8")
    root = next(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))["root"]
    return {"root": {"inputDefinitions": root["inputDefinitions"]}}


def fields(content: Any) -> Any:
    """The names in it, without the values."""
    if isinstance(content, dict):
        return {name: fields(each) for name, each in content.items() if each is not None}
    return [fields(each) for each in content] if isinstance(content, list) else None


def unlike(content: Any, model: str) -> str:
    """How it differs from the model of upstream's client; empty if it does not."""
    client = kfp_server_api.ApiClient(kfp_server_api.Configuration())
    try:
        read = client.deserialize(SimpleNamespace(data=json.dumps(content)), model)
    except (TypeError, ValueError, kfp_server_api.ApiException) as error:
        return f"{model}: {error}"
    again = client.sanitize_for_serialization(read)
    return "" if fields(again) == fields(content) else f"{model} knows only {fields(again)}, not {fields(content)}"


class Kubeflow:
    """What the server knows.

    Attributes:
        faults: one for each request to come whose "METHOD path" the expression matches: a status, "drop" (the
            connection, before it is done), "lose" (the answer, after it is done), "login" (a page of HTML), "redirect",
            or how many seconds to be slow.
        before_create: called once, before the next run is made.
        before_get: called with each run that is asked for, before the answer.
        bodies: of the POSTs with one, as "METHOD path" and JSON.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.recurring_runs: dict[str, dict[str, Any]] = {}
        self.uploaded: list[bytes] = []
        self.requests: list[str] = []
        self.bodies: list[tuple[str, Any]] = []
        self.tokens: list[str] = []
        self.faults: list[tuple[str, Any]] = []
        self.before_create: Callable[[], None] | None = None
        self.before_get: Callable[[dict[str, Any]], None] | None = None
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

    def tasks(self, run_id: str, **states: str) -> None:
        """Say how the tasks of a run are."""
        details = [{"task_id": name, "display_name": name, "state": state} for name, state in states.items()]
        self.runs[run_id]["run_details"] = {"task_details": details}

    def add_pipeline(self, name: str = "hardcase-retraining") -> dict[str, Any]:
        """A pipeline with one version."""
        pipeline = self.make_pipeline({"display_name": name})
        return self.make_version(pipeline["pipeline_id"], name)

    def make_pipeline(self, body: dict[str, Any]) -> dict[str, Any]:
        pipeline = {**body, "pipeline_id": f"pipeline-{len(self.pipelines)}", "created_at": "2026-01-01T00:00:00Z"}
        self.pipelines[pipeline["pipeline_id"]] = pipeline
        return pipeline

    def make_version(self, pipeline_id: str, name: str, spec: Any = None) -> dict[str, Any]:
        version = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": f"version-{len(self.versions)}",
            "display_name": name,
            "created_at": f"2026-01-01T00:00:{len(self.versions):02d}Z",
            "pipeline_spec": spec or compiled(name),
        }
        self.versions[version["pipeline_version_id"]] = version
        return version


class Handler(BaseHTTPRequestHandler):
    """Answers as the API server does, errors as google.rpc.Status."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    kubeflow: Kubeflow

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_DELETE(self) -> None:
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
        if fault == "login":
            self.answer(200, b"<html>Log in</html>", {"Content-Type": "text/html"})
            return
        if fault == "redirect":
            self.answer(302, {}, {"Location": f"{self.kubeflow.url}/login"})
            return
        if isinstance(fault, int) and fault >= 300:
            self.answer(fault, {"code": 2, "message": f"ordered {fault}"}, {"Retry-After": "0"} if fault == 429 else {})
            return
        if isinstance(fault, float):
            time.sleep(fault)
        with self.kubeflow.lock:
            status, content = self.found(path)
            if status == 200 and (wrong := unlike(content, self.model(path))):
                status, content = 501, {"code": 12, "message": f"the test's server is at fault: {wrong}"}
        if fault == "lose":
            self.close_connection = True
            return
        self.answer(status, content)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait for a slow one
            self.end_headers()
            self.wfile.write(data)

    def model(self, path: str) -> str:
        """Name of the model of what is answered."""
        if path == "healthz":
            return "V2beta1GetHealthzResponse"
        kind, *_ = path.replace("recurringruns", "recurring_runs").split("/")
        _, one, page = KINDS["pipeline_versions" if "version" in path else kind]
        if ":" in path or self.command == "DELETE":
            return "object"
        listing = self.command == "GET" and (path.endswith("/versions") or "/" not in path)
        return page if listing else one

    def found(self, path: str) -> Answer:
        server = self.kubeflow
        if path == "healthz":
            return 200, {"multi_user": False}
        if path == "pipelines/upload_version":
            return self.upload()
        kind = path.replace("recurringruns", "recurring_runs")
        if match := re.fullmatch(r"pipelines/([^/]+)/versions", path):
            of = {name: each for name, each in server.versions.items() if each["pipeline_id"] == match[1]}
            return 200, self.page("pipeline_versions", of)
        if kind in KINDS and self.command == "GET":
            return 200, self.page(kind, getattr(server, kind))
        if kind in KINDS and self.command == "POST":
            return self.create(kind, f"{self.command} {path}")
        if match := re.fullmatch(r"(runs|recurring_runs)/([^/:]+)(:[a-z]+)?", kind):
            return self.one(match[1], match[2], match[3])
        return 404, {"code": 5, "message": "Not Found"}

    def create(self, kind: str, request: str) -> Answer:
        server, body = self.kubeflow, json.loads(self.content)
        if wrong := unlike(body, KINDS[kind][1]):
            return 400, {"code": 3, "message": wrong}
        server.bodies.append((request, body))
        if kind == "runs":
            if server.before_create:
                call, server.before_create = server.before_create, None
                call()
            return 200, server.create_run(body)
        things = getattr(server, kind)
        if kind != "recurring_runs" and any(each["display_name"] == body["display_name"] for each in things.values()):
            return 409, {"code": 6, "message": f"{body['display_name']} already exists"}
        if kind == "pipelines":
            return 200, server.make_pipeline(body)
        key = KINDS[kind][0]
        name = f"{key.removesuffix('_id').replace('_', '-')}-{len(things)}"
        things[name] = {**body, key: name, "created_at": f"2026-01-01T00:00:{len(things):02d}Z"}
        if kind == "recurring_runs":
            things[name] |= {"status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"}
        return 200, things[name]

    def one(self, kind: str, name: str, verb: str | None) -> Answer:
        server, things = self.kubeflow, getattr(self.kubeflow, kind)
        if name not in things:
            return 404, {"code": 5, "message": f"{kind} {name} not found"}
        thing = things[name]
        if self.command == "DELETE":
            del things[name]
            return 200, {}
        if verb == ":terminate":
            thing["state"] = "CANCELING" if thing["state"] == "RUNNING" else "CANCELED"
        elif verb:
            thing["status"] = {":enable": "ENABLED", ":disable": "DISABLED"}[verb]
        elif kind == "runs" and server.before_get:
            server.before_get(thing)
        return 200, {} if verb else thing

    def upload(self) -> Answer:
        server = self.kubeflow
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = BytesParser().parsebytes(header + self.content)
        parts = form.get_payload()
        assert [part.get_param("name", header="content-disposition") for part in parts] == ["uploadfile"]
        if any(each["display_name"] == self.query["name"] for each in server.versions.values()):
            return 409, {"code": 6, "message": f"version {self.query['name']} already exists"}
        package = parts[0].get_payload(decode=True)
        server.uploaded.append(package)
        try:
            spec = next(yaml.safe_load_all(package))
        except yaml.YAMLError as error:
            return 400, {"code": 3, "message": f"no pipeline: {error}"}
        spec = spec if isinstance(spec, dict) and "root" in spec else None
        return 200, server.make_version(self.query["pipelineid"], self.query["name"], spec)

    def page(self, key: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Two a page, so that paging is seen to."""
        found = list(known.values())
        if "filter" in self.query:
            [predicate] = json.loads(self.query["filter"])["predicates"]
            assert predicate["operation"] in ("EQUALS", 1)  # by name or number
            found = [each for each in found if each.get(predicate["key"]) == predicate["stringValue"]]
        if "experiment_id" in self.query:
            found = [each for each in found if each.get("experiment_id", "") == self.query["experiment_id"]]
        if self.query.get("sort_by") == "created_at desc":
            found.sort(key=lambda each: each["created_at"], reverse=True)
        start = int(self.query.get("page_token") or 0)
        more = {"next_page_token": str(start + 2)} if len(found) > start + 2 else {}
        name = "recurringRuns" if key == "recurring_runs" else key
        return {name: found[start : start + 2], "total_size": len(found), **more}


@contextmanager
def kubeflow_server(tls: ssl.SSLContext | None = None) -> Iterator[Kubeflow]:
    """Start one on a free port of loopback; it is gone afterwards."""
    known = Kubeflow()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"kubeflow": known}))
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    known.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield known
    server.shutdown()
    server.server_close()
