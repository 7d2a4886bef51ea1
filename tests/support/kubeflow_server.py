"""A server on loopback that speaks Kubeflow Pipelines' v2beta1 REST API, with faults to order.

Its answers are those that a real Kubeflow Pipelines 2.17.0 gave (tests/recordings/kubeflow); what no recording shows
cites the source, kubeflow/pipelines 2.17.0 below backend/src/apiserver. Requests and answers are held against the
models of upstream's own OpenAPI client. Both the tests of the command line and those of Airflow's side, which have
environments of their own, use it.
"""

import base64
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
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

import yaml

from tests.support.kubeflow_recordings import NEVER, recorded, refusal, task_details, unlike

PIPELINES = Path(__file__).resolve().parents[2] / "hardcase" / "compiled"
# Of each listing: its place in `Kubeflow`, the id of its things, the model of one and of a page.
KINDS = {
    "runs": ("run_id", "V2beta1Run", "V2beta1ListRunsResponse"),
    "pipelines": ("pipeline_id", "V2beta1Pipeline", "V2beta1ListPipelinesResponse"),
    "experiments": ("experiment_id", "V2beta1Experiment", "V2beta1ListExperimentsResponse"),
    "recurring_runs": ("recurring_run_id", "V2beta1RecurringRun", "V2beta1ListRecurringRunsResponse"),
    "pipeline_versions": ("pipeline_version_id", "V2beta1PipelineVersion", "V2beta1ListPipelineVersionsResponse"),
}
# May be terminated: storage/run_store.go:823.
UNENDED = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED")
LARGEST = 1_500_000  # bytes that etcd takes of an object; run-create-parameter-large.json
Answer = tuple[int, Any]


@cache
def compiled(name: str) -> dict[str, Any]:
    """Return the compiled pipeline of that name; that of the retraining for one that is not there."""
    path = PIPELINES / f"{name.removeprefix('hardcase-')}.yaml"
    return spec_of((path if path.is_file() else PIPELINES / "retraining.yaml").read_bytes())


def spec_of(package: bytes) -> dict[str, Any]:
    """Return a package as a version shows it: with settings for Kubernetes, one level down (server/api_util.go:169)."""
    spec, *platform = yaml.load_all(package, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec


class Kubeflow:
    """What the server knows.

    Attributes:
        multi_user: whether the installation is for several users, each in a namespace.
        faults: one for each request to come whose "METHOD path" the expression matches: a status, "drop" (the
            connection, before it is done), "lose" (the answer, after it is done), "login" (a page of HTML), "redirect",
            how many seconds to be slow, or the name of a recorded answer.
        before_create: called once, before the next run is made.
        before_get: called with each run that is asked for, before the answer.
        bodies: of the POSTs with one, as "METHOD path" and JSON.
        hung: files that a real server would read for ever: they are no YAML.
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
        self.hung: list[bytes] = []
        self.multi_user = False
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
            moment = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)).isoformat()
            run = {**body, "run_id": f"run-{number}", "state": "PENDING", "storage_state": "AVAILABLE"}
            run |= {"created_at": moment, "scheduled_at": moment, "finished_at": NEVER}
            run["state_history"] = [{"update_time": moment, "state": "PENDING"}]
            self.runs[run["run_id"]] = run
            return run

    def end(self, run_id: str, state: str, **more: Any) -> None:
        """Let a run end."""
        self.runs[run_id] |= {"state": state, "finished_at": "2026-01-02T00:00:00Z", **more}

    def tasks(self, run_id: str, **states: str | None) -> None:
        """Say how the steps of a run are; `CACHED` if one came from the cache, None if it was never reached."""
        self.runs[run_id]["run_details"] = {"task_details": task_details(states)}

    def replay(self, run_id: str, name: str) -> None:
        """Let a run be as a real one was."""
        body = recorded(name)["body"]
        told = ("state", "state_history", "run_details", "created_at", "finished_at")
        self.runs[run_id] |= {key: body[key] for key in told if key in body}

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
            "name": name,
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
        if isinstance(fault, str) and fault != "lose":
            self.answer(*refusal(fault))
            return
        if isinstance(fault, float):
            time.sleep(fault)
        with self.kubeflow.lock:
            status, content = self.found(path)
            # Upstream's client knows less of healthz than what the server answers.
            if status == 200 and path != "healthz" and (wrong := unlike(content, self.model(path))):
                status, content = 501, {"code": 12, "message": f"the test's server is at fault: {wrong}"}
        if fault == "lose" or not status:
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
        kind, *_ = path.replace("recurringruns", "recurring_runs").split("/")
        _, one, page = KINDS["pipeline_versions" if "version" in path else kind]
        if ":" in path or self.command == "DELETE":
            return "object"
        listing = self.command == "GET" and (path.endswith("/versions") or "/" not in path)
        return page if listing else one

    def found(self, path: str) -> Answer:
        server = self.kubeflow
        if path == "healthz":
            return 200, recorded("healthz" if server.multi_user else "single-user/healthz")["body"]
        if path == "pipelines/upload_version":
            return self.upload()
        kind = path.replace("recurringruns", "recurring_runs")
        if match := re.fullmatch(r"experiments/([^/:]+):archive", path):  # server/experiment_server.go:370
            server.experiments[match[1]]["storage_state"] = "ARCHIVED"
            for run in server.runs.values():
                if run.get("experiment_id") == match[1]:
                    run["storage_state"] = "ARCHIVED"
            return 200, {}
        if match := re.fullmatch(r"pipelines/([^/]+)", path):
            there = server.pipelines.get(match[1])
            if there and self.command == "DELETE":  # server/pipeline_server.go:604
                del server.pipelines[match[1]]
                return 200, {}
            return (200, there) if there else refusal("pipeline-missing", id=match[1])
        if match := re.fullmatch(r"pipelines/([^/]+)/versions(?:/([^/]+))?", path):
            of = {name: each for name, each in server.versions.items() if each["pipeline_id"] == match[1]}
            if match[2]:
                # server/pipeline_server.go:960 says the same of a version.
                return (200, of[match[2]]) if match[2] in of else refusal("pipeline-missing", id=match[2])
            return self.page("pipeline_versions", of)
        if kind in KINDS and self.command == "GET":
            if kind == "runs" and (asked := server.experiments.get(self.query.get("experiment_id", ""))):
                self.query.setdefault("namespace", asked.get("namespace", ""))  # server/run_server.go:220
            if kind == "runs" and server.multi_user and not self.query.get("namespace"):
                return refusal("runs-without-namespace")
            return self.page(kind, getattr(server, kind))
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
            return self.wrong_run(body) or (200, server.create_run(body))
        things = getattr(server, kind)
        name = body["display_name"]
        # Names are unique in a namespace: model/pipeline.go:44 and model/experiment.go:20.
        same = [each for each in things.values() if each["display_name"] == name]
        if kind != "recurring_runs" and any(each.get("namespace") == body.get("namespace") for each in same):
            return refusal(f"{kind.removesuffix('s')}-create-again", name=name)
        if kind == "pipelines":
            return 200, server.make_pipeline(body)
        key = KINDS[kind][0]
        made = f"{key.removesuffix('_id').replace('_', '-')}-{len(things)}"
        if kind == "recurring_runs":
            chosen = body["pipeline_version_reference"]["pipeline_version_id"]
            if chosen not in server.versions:  # resource/resource_manager.go:1309
                return refusal("run-create-version-missing", id=chosen)
            if len(body["trigger"]["cron_schedule"]["cron"].split()) not in (5, 6):
                return refusal("recurring-create-cron-nonsense")
            # recurring-create-no-account.json; for one user, template/template.go:319.
            account = body.get("service_account") or ("default-editor" if server.multi_user else "pipeline-runner")
            body |= {"service_account": account, "status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"}
            body |= {"updated_at": NEVER, **self.namespace(body)}
        state = {"storage_state": "AVAILABLE"} if kind == "experiments" else {}
        things[made] = {**body, **state, key: made, "created_at": f"2026-01-01T00:00:{len(things):02d}Z"}
        return 200, things[made]

    def namespace(self, thing: dict[str, Any]) -> dict[str, str]:
        """The namespace of a thing, which is that of its experiment, as far as it is known."""
        known = {**self.kubeflow.experiments.get(thing.get("experiment_id", ""), {}), **thing}
        return {"namespace": known["namespace"]} if known.get("namespace") else {}

    def wrong_run(self, body: dict[str, Any]) -> Answer | None:
        """What is said of a run that cannot be."""
        chosen = body["pipeline_version_reference"]["pipeline_version_id"]
        if chosen not in self.kubeflow.versions:
            return refusal("run-create-version-missing", id=chosen)
        if len(self.content) > LARGEST:
            return refusal("run-create-parameter-large")
        spec = self.kubeflow.versions[chosen]["pipeline_spec"]
        inputs = spec.get("pipeline_spec", spec)["root"].get("inputDefinitions", {}).get("parameters", {})
        if unknown := sorted(body.get("runtime_config", {}).get("parameters", {}).keys() - inputs.keys()):
            return refusal("run-create-parameter-unknown", name=", ".join(unknown))
        return None

    def one(self, kind: str, name: str, verb: str | None) -> Answer:
        server, things = self.kubeflow, getattr(self.kubeflow, kind)
        if name not in things:
            return refusal("run-missing" if kind == "runs" else "recurring-missing", id=name)
        thing = things[name]
        if self.command == "DELETE":
            del things[name]
            return 200, {}
        if verb == ":terminate":
            if thing["state"] not in UNENDED:
                return refusal("run-terminate-ended", id=name)
            thing["state"] = "CANCELING"
            thing["state_history"].append({"update_time": datetime.now(UTC).isoformat(), "state": "CANCELING"})
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
        package = parts[0].get_payload(decode=True)
        if self.query["pipelineid"] not in server.pipelines:
            return refusal("version-upload-pipeline-missing")
        name = self.query["pipelineid"], self.query["name"]
        if any((each["pipeline_id"], each["display_name"]) == name for each in server.versions.values()):
            return refusal("version-upload-again")
        server.uploaded.append(package)
        try:
            spec = spec_of(package)
        except yaml.YAMLError:
            server.hung.append(package)  # template/template.go:81 goes on reading after an error
            return 0, {}
        except ValueError:
            spec = {}
        if not isinstance(spec, dict) or "root" not in spec.get("pipeline_spec", spec):
            # server/pipeline_upload_server.go:345 and template/template.go:162
            return 400, {"error_message": "unknown template format", "error_details": "unknown template format"}
        made = server.make_version(self.query["pipelineid"], self.query["name"], spec)
        if "description" in self.query:
            made["description"] = self.query["description"]
        return 200, made

    def page(self, key: str, known: dict[str, dict[str, Any]]) -> Answer:
        """Two a page, so that paging is seen to."""
        found = list(known.values())
        if "filter" in self.query:
            # Unescaped once more: experiments-filter-plus.json and -percent.json; server/list_request_util.go:143.
            if re.search(r"%(?![0-9A-Fa-f]{2})", self.query["filter"]):
                return refusal("experiments-filter-percent")
            try:
                [predicate] = json.loads(unquote_plus(self.query["filter"]))["predicates"]
            except ValueError:
                return refusal("experiments-filter-malformed")
            assert predicate["operation"] in ("EQUALS", 1)  # by name or number
            found = [each for each in found if each.get(predicate["key"]) == predicate["stringValue"]]
        if self.kubeflow.multi_user and "namespace" in self.query:
            asked = {"namespace": self.query["namespace"]}
            found = [each for each in found if self.namespace(each) in ({}, asked)]
        if "experiment_id" in self.query:
            found = [each for each in found if each.get("experiment_id", "") == self.query["experiment_id"]]
        if self.query.get("sort_by") == "created_at desc":
            found.sort(key=lambda each: each["created_at"], reverse=True)
        if not found:
            return 200, {}  # experiments-filter-plus.json
        # An opaque token: list/list.go:118.
        start = json.loads(base64.b64decode(self.query.get("page_token") or "MA=="))
        more = base64.b64encode(json.dumps(start + 2).encode()).decode()
        rest = {"next_page_token": more} if len(found) > start + 2 else {}
        name = "recurringRuns" if key == "recurring_runs" else key
        return 200, {name: found[start : start + 2], "total_size": len(found), **rest}


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
