"""A stand-in for an installation: Kubeflow's API, whose runs are really done, and a little of Kubernetes' own.

Kubeflow's answers are those of tests/support/kubeflow_server.py. A run that is started executes the uploaded YAML on
this machine by `work.py`, with a store in a folder. Kubernetes answers as if our settings were applied. Where no
recording shows an answer, the source is cited: kubeflow/pipelines 2.17.0 below backend/src/apiserver.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support.kubeflow_server import Answer, Handler, Kubeflow

REPOSITORY = Path(__file__).resolve().parents[2]
COMPONENT = REPOSITORY / "infra" / "kubernetes" / "components" / "kubeflow"
BASE = REPOSITORY / "infra" / "kubernetes" / "base"
PAGE = b"<!doctype html><html><title>Kubeflow Pipelines</title></html>"


@dataclass
class Work:
    """A run that is being done."""

    process: "subprocess.Popen[bytes]"
    events: Path
    step: str = ""

    def states(self) -> dict[str, str]:
        """Return the state of each step that began."""
        lines = self.events.read_text(encoding="utf-8").splitlines() if self.events.exists() else []
        told = [json.loads(line) for line in lines]
        found = {event["step"]: event["state"] for event in told}
        self.step = next((step for step, state in found.items() if state == "RUNNING"), "")
        return found


class Cluster(Kubeflow):
    """Does the runs that it is asked for.

    Attributes:
        folder: for files.
        environment: of the steps.
        works: by the run's id.
        packages: the files, by the version's id.
        objects: what Kubernetes shows, by path.
    """

    def __init__(self, folder: Path, environment: dict[str, str], several: bool) -> None:
        super().__init__()
        self.folder, self.environment, self.multi_user = folder, environment, several
        self.pods_namespace = "hardcase" if several else "kubeflow"
        self.works: dict[str, Work] = {}
        self.packages: dict[str, bytes] = {}
        self.objects = kubernetes_objects(environment["HARDCASE_STORE"], self.pods_namespace)

    def make_version(self, pipeline_id: str, name: str, spec: Any = None) -> dict[str, Any]:
        """Keep the file of a version."""
        version = super().make_version(pipeline_id, name, spec)
        self.packages[version["pipeline_version_id"]] = self.uploaded[-1]
        return version

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begin with it."""
        run = super().create_run(body)
        moment = datetime.now(UTC).isoformat()
        run |= {"created_at": moment, "scheduled_at": moment}
        package = self.folder / f"{run['run_id']}.yaml"
        package.write_bytes(self.packages[body["pipeline_version_reference"]["pipeline_version_id"]])
        events = self.folder / f"{run['run_id']}.events"
        own = {"HARDCASE_RUN": run["run_id"], "EVENTS": str(events), "OMP_NUM_THREADS": "1"}
        given = json.dumps(body.get("runtime_config", {}).get("parameters", {}))
        with (self.folder / f"{run['run_id']}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("work.py")), str(self.folder), str(package), given],
                env={**os.environ, **self.environment, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.works[run["run_id"]] = Work(process, events)
        return run

    def look(self) -> None:
        """Bring the runs up to date."""
        for run_id, work in self.works.items():
            run, code = self.runs[run_id], work.process.poll()
            if run["state"] not in ("PENDING", "RUNNING", "CANCELING"):
                continue
            if states := work.states():
                self.tasks(run_id, **states)
                run["state"] = "RUNNING" if run["state"] == "PENDING" else run["state"]
            if code is not None:
                moment = datetime.now(UTC).isoformat()
                run |= {"state": "FAILED" if code else "SUCCEEDED", "finished_at": moment}
                run["state_history"].append({"update_time": moment, "state": run["state"]})

    def pods(self, run_id: str) -> list[dict[str, Any]]:
        """Return the pods of a run, named as those of argo-nodes-smoke-pod-deleted.json are."""
        work = self.works[run_id]
        work.states()
        if not work.step or work.process.poll() is not None:
            return []
        name = f"hardcase-{run_id}"
        about = {
            "name": f"{name}-retry-system-container-impl-1",
            "labels": {"pipeline/runid": run_id},
            "annotations": {
                "workflows.argoproj.io/node-name": f"{name}(0).root(0).exit-handler-1(0).{work.step}(0).executor(0)"
            },
        }
        return [{"metadata": about, "status": {"phase": "Running"}}]

    def end_all(self) -> None:
        """End what is still being done."""
        for work in self.works.values():
            if work.process.poll() is None:
                work.process.send_signal(signal.SIGTERM)
                work.process.wait(60)


def kubernetes_objects(store: str, namespace: str) -> dict[str, Any]:
    """Return what Kubernetes would show by path, our settings applied."""
    found: dict[str, Any] = {}
    for name, path in (
        ("workflow-controller-configmap", "/api/v1/namespaces/kubeflow/configmaps"),
        ("workflow-controller", "/apis/apps/v1/namespaces/kubeflow/deployments"),
    ):
        found[f"{path}/{name}"] = yaml.safe_load((COMPONENT / f"{name}.yaml").read_text(encoding="utf-8"))
    own = f"/api/v1/namespaces/{namespace}"
    for file in ("pipelines/accounts.yaml", "pipelines/quota.yaml", "steps/environment.yaml", "steps/scratch.yaml"):
        for each in yaml.safe_load_all((BASE / file).read_text(encoding="utf-8")):
            kind = {"ConfigMap": "configmaps", "ServiceAccount": "serviceaccounts", "ResourceQuota": "resourcequotas"}
            found[f"{own}/{kind.get(each['kind'], 'persistentvolumeclaims')}/{each['metadata']['name']}"] = each
    found[f"{own}/configmaps/hardcase-environment"]["data"]["HARDCASE_STORE"] = store
    quota = found[f"{own}/resourcequotas/runs"]
    found[f"{own}/resourcequotas"] = {"items": [{**quota, "status": {"hard": quota["spec"]["hard"], "used": {}}}]}
    return found


class ClusterHandler(Handler):
    """Answers as the API server, the UI's server and Kubernetes do."""

    kubeflow: Cluster

    def serve(self) -> None:
        """Answer what is not Kubeflow's API."""
        parts = urlsplit(self.path)
        if parts.path == "/":
            self.answer(200, PAGE, {"Content-Type": "text/html"})
        elif parts.path.startswith(("/api/v1/", "/apis/apps/")):
            self.answer(*self.kubernetes(parts.path, parse_qs(parts.query)))
        else:
            super().serve()

    def kubernetes(self, path: str, query: dict[str, list[str]]) -> Answer:
        """Answer a request to Kubernetes."""
        cluster = self.kubeflow
        if not path.startswith(f"/api/v1/namespaces/{cluster.pods_namespace}/pods"):
            missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
            return (200, cluster.objects[path]) if path in cluster.objects else (404, missing)
        if self.command == "DELETE":
            for run_id, work in cluster.works.items():
                if any(path.endswith(pod["metadata"]["name"]) for pod in cluster.pods(run_id)):
                    work.process.send_signal(signal.SIGUSR1)
            return 200, {"kind": "Status", "status": "Success"}
        return 200, {"items": cluster.pods(query["labelSelector"][0].removeprefix("pipeline/runid="))}

    def found(self, path: str) -> Answer:
        """Bring the runs up to date, and stop the work of a run that is stopped."""
        self.kubeflow.look()
        answer = super().found(path)
        name, _, verb = path.removeprefix("runs/").partition(":")
        if verb == "terminate" and answer[0] == 200:
            self.kubeflow.works[name].process.send_signal(signal.SIGTERM)
        return answer


@contextmanager
def standing_in(folder: Path, environment: dict[str, str], several: bool = True) -> Iterator[Cluster]:
    """Start one on a free port of loopback, for one user or several; it is gone afterwards, and so are its runs."""
    cluster = Cluster(folder, environment, several)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (ClusterHandler,), {"kubeflow": cluster}))
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield cluster
    finally:
        cluster.end_all()
        server.shutdown()
        server.server_close()
