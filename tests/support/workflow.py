"""Say what a compiled pipeline becomes on a cluster: its graph, its pods, the size of its Workflow.

The Workflow is compiled (`argo.py`), its drivers are done (`kfp_driver.py`) and it is run (`argo_run.py`) as Kubeflow
Pipelines 2.17.0 and Argo Workflows v4.0.5 do; what is measured is the object that would be stored.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from tests.support.argo import Compiler, read_pipeline
from tests.support.argo_run import START, Result, Run
from tests.support.argo_templates import Json, go_json
from tests.support.kfp_driver import Driver, Execution

LIMIT = 1024 * 1024  # of the object, without MAX_WORKFLOW_SIZE (argo-workflows v4.0.5, workflow/packer/packer.go:20)
# What KFP sets (kubeflow/pipelines 2.17.0, manifests/kustomize/third-party/argo/base/workflow-controller-configmap-
# patch.yaml:55).
STOCK: Json = {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}}


@dataclass(frozen=True)
class Graph:
    """A compiled pipeline in numbers: the layer of the chain as the UI draws it, and what a run of one shard takes.

    Attributes:
        layers: how deep the chain, the group of the most tasks, lies below the root.
        steps: its tasks.
        artifacts: its tasks' output artifacts.
        edges: its tasks' input artifacts.
        nodes: entries of `status.nodes`.
        pods: pods, nothing being cached.
        cached_pods: pods, everything being cached that may be.
        cached_seconds: what those take, ten seconds a pod (`Result`).
    """

    layers: int
    steps: int
    artifacts: int
    edges: int
    nodes: int
    pods: int
    cached_pods: int
    cached_seconds: int


@dataclass(frozen=True)
class Size:
    """Bytes of a Workflow: without its nodes, its nodes, and the whole of it as it is stored."""

    spec: int
    nodes: int
    compressed: int

    @property
    def plain(self) -> int:
        """Bytes of the whole, nodes as they are."""
        return self.spec + self.nodes

    @property
    def stored(self) -> int:
        """Bytes as stored: nodes are compressed where they would exceed the limit (packer.go:63)."""
        return self.plain if self.plain <= LIMIT else self.spec + self.compressed


Seal = Callable[[str, Execution], dict[str, Json]]


def run_pipeline(
    path: Path,
    values: Mapping[str, Any],
    seal: Seal,
    *,
    cached: bool = False,
    defaults: Json = STOCK,
    name: str = "hardcase-retraining-2xbm4",
    form: Mapping[str, Any] | None = None,
    fails: Callable[[str, int], Result | None] = lambda name, attempt: None,
) -> tuple[Json, Driver, Run]:
    """Run a compiled pipeline.

    Args:
        path: of the YAML, or gzipped.
        values: of the tasks' output parameters, by name.
        seal: metadata of output artifacts.
        cached: whether every task that may be is found in the cache.
        defaults: the controller's `templateDefaults`.
        name: of the Workflow.
        form: what was filled in.
        fails: how an attempt of a pod ends if not well, by its node's name.
    """
    workflow = Compiler(*read_pipeline(path), form or {}).workflow
    driver = Driver(
        lambda component: {n: values[n] for n in component["outputDefinitions"]["parameters"]}, seal, cached
    )

    def pod(node: str, inputs: Mapping[str, str], attempt: int) -> Result:
        if (failed := fails(node, attempt)) is not None:
            return failed
        return Result(outputs=driver.drive(inputs) if "component" in inputs else {})

    return workflow, driver, Run(workflow, pod, defaults, name)


def describe(path: Path, values: Mapping[str, Any]) -> Graph:
    """Count what a compiled pipeline consists of."""
    spec, _ = read_pipeline(path)
    components = {"root": spec["root"], **spec["components"]}
    layers, tasks = max(_groups(components, "root", 0), key=lambda group: len(group[1]))
    outputs = [_outputs(components[task["componentRef"]["name"]]) for task in tasks]
    _, _, run = run_pipeline(path, values, seal_digests)
    _, _, cached = run_pipeline(path, values, seal_digests, cached=True)
    return Graph(
        layers=layers,
        steps=len(tasks),
        artifacts=sum(map(len, outputs)),
        edges=sum(len(task.get("inputs", {}).get("artifacts", {})) for task in tasks),
        nodes=len(run.nodes),
        pods=len(run.pods()),
        cached_pods=len(cached.pods()),
        cached_seconds=round(cached.now),
    )


def _groups(components: Json, name: str, depth: int) -> Iterator[tuple[int, list[Json]]]:
    """Yield the depth and the tasks of a group and of those in it."""
    tasks = list(components[name].get("dag", {}).get("tasks", {}).values())
    yield depth, tasks
    for task in tasks:
        yield from _groups(components, task["componentRef"]["name"], depth + 1)


def _outputs(component: Json) -> Json:
    defined: Json = component.get("outputDefinitions", component.get("dag", {}).get("outputs", {}))
    return dict(defined.get("artifacts", {}))


def workflow_size(path: Path, values: Mapping[str, Any], seal: Seal, **options: Any) -> Size:
    """Return the bytes of the Workflow of a run, with the options of `run_pipeline`.

    Left out: managed fields, the conditions of the status, annotations; together about three per cent of the object of
    a recorded run.
    """
    workflow, _, run = run_pipeline(path, values, seal, **options)
    text = go_json({node["id"]: status(node) for node in run.nodes.values()})
    done = {node["id"]: True for node in run.pods()}
    spec = {**workflow, "status": {"phase": run.phase, "taskResultsCompletionStatus": done}}
    return Size(len(go_json(spec).encode()), len(text.encode()), len(compress(text)))


def compress(text: str) -> str:
    """Compress as Argo does (util/file/fileutil.go:86); pgzip and zlib differ by less than one per cent."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def status(node: Json) -> Json:
    """Return a node as it is stored."""
    begun = datetime.fromtimestamp(START + node["started"], UTC)
    ended = begun + timedelta(seconds=node.get("finished", node["started"]) - node["started"])
    times = {"startedAt": f"{begun:%Y-%m-%dT%H:%M:%SZ}", "finishedAt": f"{ended:%Y-%m-%dT%H:%M:%SZ}"}
    synced = {"taskResultSynced": True} if node["type"] == "Pod" else {}
    stored = {name: value for name, value in node.items() if name not in ("started", "finished") and value != []}
    return {**stored, **times, "progress": node.get("progress", "0/1"), **synced}


def seal_digests(task: str, execution: Execution) -> dict[str, Json]:
    """Give each artifact two digests and nothing else."""
    names = execution.component.get("outputDefinitions", {}).get("artifacts", {})
    return {n: {"sha256": digest(task, n, execution.id), "attestation": digest(task, "", execution.id)} for n in names}


def seal_links(task: str, execution: Execution) -> dict[str, Json]:
    """Give each artifact its step's whole signed in-toto link, as the pipeline did before."""
    outputs = execution.component.get("outputDefinitions", {}).get("artifacts", {})
    products = {name: digest(task, name, execution.id) for name in outputs}
    materials = {
        f"{name}-{number}": artifact["metadata"].get("sha256", "")
        for name, artifacts in execution.artifacts.items()
        for number, artifact in enumerate(artifacts)
    }
    place = ("store", "scratch", "tracking_uri", "result", "champion")
    own = {n: v for n, v in execution.parameters.items() if n in execution.component["inputDefinitions"]["parameters"]}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": value}} for name, value in products.items()],
        "predicateType": "https://in-toto.io/attestation/link/v0.3",
        "predicate": {
            "name": task,
            "command": [],
            "materials": [{"name": name, "digest": {"sha256": value}} for name, value in materials.items()],
            "byproducts": {name: value for name, value in own.items() if name not in place},
            "environment": {"run": "24283211-e4a6-4460-92ee-e16d7437fb4d"},
        },
    }
    random = Random(f"{task}-{execution.id}")
    signature = {"keyid": digest("key"), "sig": base64.b64encode(random.randbytes(70)).decode()}
    payload = base64.b64encode(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()).decode()
    envelope = {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": [signature]}
    return {name: {"sha256": value, "link": json.dumps(envelope)} for name, value in products.items()}


def digest(*parts: object) -> str:
    """Return a sha256 that is as random as a real one."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
