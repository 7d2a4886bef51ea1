"""Compile a pipeline's YAML to the Argo Workflow that Kubeflow Pipelines 2.17.0 makes of it.

Follows kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler (argo.go, container.go, dag.go, common.go,
security_context.go) and backend/src/v2/compiler/visitor.go, for what our pipelines use: container tasks, nested
pipelines, loops over a parameter, exit handlers, retries, pod metadata. Conditions, importers and workspaces are left
out. Two things differ from the original in their bytes, not in their size: the digests in names of arguments (Go hashes
its own encoding, argo.go:437), and the order of keys.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.argo_templates import (
    POD_ENV,
    SECURITY,
    Json,
    argument,
    container_driver,
    dag_driver,
    executor,
    go_json,
    input_reference,
    parameters,
    template,
)

RETRY = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")


def read_pipeline(path: Path) -> tuple[Json, Json]:
    """Return a compiled pipeline's spec and its executors' Kubernetes settings; `path` may be gzipped."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    spec, *rest = yaml.load_all(text, yaml.CSafeLoader)
    return spec, rest[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if rest else {}


def _output(task: str, name: str) -> str:
    return f"{{{{tasks.{task}.outputs.parameters.{name}}}}}"


def _depends(tasks: list[str]) -> Json:
    return {"depends": " && ".join(f"{task}.Succeeded" for task in tasks)} if tasks else {}


def is_exit_task(task: Mapping[str, Any]) -> bool:
    """Tell whether a task is an exit handler's (dag.go:73)."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED")


class Compiler:
    """One compilation; `workflow` holds its result."""

    def __init__(self, spec: Json, kubernetes: Json, values: Mapping[str, Any] | None = None) -> None:
        self.spec = json.loads(json.dumps(spec))
        self.kubernetes = kubernetes
        self.values = dict(values or {})
        self.components = {"root": self.spec["root"], **self.spec.get("components", {})}
        self.executors = self.spec.get("deploymentSpec", {}).get("executors", {})
        self.arguments: dict[str, str] = {}
        self.templates: dict[str, Json] = {}
        self.visited: set[str] = set()
        self._visit("root", None)
        name = self.spec["pipelineInfo"]["name"].rpartition("/")[2]
        marks = {"pipelines.compile.org/v2_component": "true"}
        self.workflow: Json = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": f"{name}-"},
            "spec": {
                "arguments": {"parameters": [argument(*item) for item in self.arguments.items()]},
                "entrypoint": "entrypoint",
                "podMetadata": {"annotations": marks, "labels": marks},
                "securityContext": SECURITY,
                "serviceAccountName": "pipeline-runner",
                "templates": list(self.templates.values()),
            },
        }

    def _visit(self, name: str, parent: Json | None) -> None:
        """Visit a component after those it uses; a task without retries takes those of its group (visitor.go:163)."""
        if name in self.visited:
            return
        self.visited.add(name)
        component = self.components[name]
        if "dag" in component:
            for _, task in sorted(component["dag"]["tasks"].items()):
                if parent and "retryPolicy" in parent:
                    task.setdefault("retryPolicy", parent["retryPolicy"])
                self._visit(task["componentRef"]["name"], task)
            self._dag(name, component)
            return
        if settings := self.kubernetes.get(component["executorLabel"]):
            self.arguments[f"kubernetes-{name}"] = go_json(settings)
        self._save("components", name, component)
        self._save("implementations", name, self.executors[component["executorLabel"]]["container"])

    def _digest(self, name: str) -> str:
        """Name a component by its container, so that equal containers share an entry (argo.go:437)."""
        container = self.executors.get(self.components[name].get("executorLabel"), {}).get("container")
        return hashlib.sha256(go_json(container).encode()).hexdigest() if container else name

    def _save(self, kind: str, name: str, message: Any) -> None:
        self.arguments.setdefault(f"{kind}-{self._digest(name)}", go_json(message))

    def _use(self, kind: str, name: str) -> str:
        return f"{{{{workflow.parameters.{kind}-{self._digest(name)}}}}}"

    def _dag(self, name: str, component: Json) -> None:
        tasks = component["dag"]["tasks"]
        for task in tasks.values():
            for kind, key in (("parameters", "taskOutputParameter"), ("artifacts", "taskOutputArtifact")):
                for source in task.get("inputs", {}).get(kind, {}).values():
                    if key in source and source[key]["producerTask"] not in task.get("dependentTasks", []):
                        task.setdefault("dependentTasks", []).append(source[key]["producerTask"])
        self._save("components", name, component)
        hooks = {}
        for exit_name, task in sorted(tasks.items()):
            if is_exit_task(task):
                hook = f"exit-hook-{name}-{exit_name}"
                hooks.update(dict.fromkeys(task["dependentTasks"], hook))
                self._add_dag(hook, parameters("parent-dag-id"), self._task(exit_name, task))
        argo_tasks = [
            argo
            for key, task in sorted(tasks.items())
            if not is_exit_task(task)
            for argo in self._task(key, task, hook=hooks.get(key))
        ]
        self._add_dag(name, parameters("parent-dag-id"), argo_tasks)
        if name == "root":
            values = {
                key: self.values.get(key, about.get("defaultValue"))
                for key, about in component.get("inputDefinitions", {}).get("parameters", {}).items()
                if key in self.values or "defaultValue" in about or about.get("isOptional")
            }
            config = go_json({"parameterValues": values} if values else {})
            driver = self._dag_driver(
                "root-driver", [argument("runtime-config", config), argument("driver-type", "ROOT_DAG")], "root"
            )
            root = self._dag_task("root", "root", _output("root-driver", "execution-id"), "", None)
            self._add_dag("entrypoint", [], [driver, {**root, **_depends(["root-driver"])}])

    def _add_dag(self, name: str, inputs: list[Json], tasks: list[Json]) -> None:
        self.templates[name] = template(name, inputs, dag={"tasks": tasks})

    def _dag_task(self, name: str, component: str, parent: str, condition: str, hook: str | None) -> Json:
        return {
            "name": name,
            "template": component,
            "arguments": {"parameters": parameters(parent_dag_id=parent, condition=condition)},
            **_hooks(hook),
        }

    def _task(self, name: str, task: Json, index: str = "", key: str = "", hook: str | None = None) -> list[Json]:
        """Make the driver's task and the task of what it drives (dag.go:223); an iteration has an `index`."""
        component = task["componentRef"]["name"]
        if task.get("parameterIterator") and not index:
            return [self._loop(name, task)]
        driver_name, parent, dependencies = (
            f"{name}-driver",
            input_reference("parent-dag-id"),
            task.get("dependentTasks", []),
        )
        waits = {} if index or is_exit_task(task) else _depends(dependencies)
        if "dag" in self.components[component]:
            inputs = [argument("iteration-index", index)] if index else []
            inputs += [argument("parent-dag-id", parent), argument("task", go_json(task))]
            driver = self._dag_driver(driver_name, [*inputs, argument("task-name", key or name)], component)
            outputs = _output(driver_name, "execution-id"), _output(driver_name, "condition")
            dag = self._dag_task(name, component, *outputs, hook)
            return [{**driver, **waits}, {**dag, **_depends([driver_name])}]
        inputs = parameters(
            component=self._use("components", component),
            task=go_json(task),
            container=self._use("implementations", component),
            task_name=key or name,
            parent_dag_id=parent,
        )
        inputs += [argument("iteration-index", index)] if index else []
        if f"kubernetes-{component}" in self.arguments:
            inputs.append(argument("kubernetes-config", f"{{{{workflow.parameters.kubernetes-{component}}}}}"))
        self.templates.setdefault("system-container-driver", container_driver(self.spec["pipelineInfo"]["name"]))
        driver = {"name": driver_name, "template": "system-container-driver", "arguments": {"parameters": inputs}}
        executor = self._executor_task(name, driver_name, task, hook)
        return [{**driver, **waits}, {**executor, **_depends([driver_name])}]

    def _loop(self, name: str, task: Json) -> Json:
        """Make a loop: a driver that counts, and for each item a driver and the body (dag.go:360)."""
        component, parent = task["componentRef"]["name"], input_reference("parent-dag-id")
        inputs = [argument("parent-dag-id", parent), argument("task", go_json(task)), argument("task-name", name)]
        driver = self._dag_driver("iteration-driver", inputs, component)
        body = self._task("iteration-item", task, index=input_reference("iteration-index"), key=name)
        self._add_dag(f"{component}-iteration", parameters("parent-dag-id", "iteration-index"), body)
        iterations = {
            "name": "iteration-iterations",
            "template": f"{component}-iteration",
            **_depends(["iteration-driver"]),
            "arguments": {
                "parameters": parameters(
                    parent_dag_id=_output("iteration-driver", "execution-id"), iteration_index="{{item}}"
                )
            },
            "withSequence": {"count": _output("iteration-driver", "iteration-count")},
        }
        self._add_dag(f"{component}-{name}-iterator", parameters("parent-dag-id"), [driver, iterations])
        return {
            "name": name,
            "template": f"{component}-{name}-iterator",
            **_depends(task.get("dependentTasks", [])),
            "arguments": {"parameters": parameters(parent_dag_id=parent)},
        }

    def _executor_task(self, name: str, driver: str, task: Json, hook: str | None) -> Json:
        metadata = self.kubernetes.get(self.components[task["componentRef"]["name"]]["executorLabel"], {}).get(
            "podMetadata"
        )
        named = _metadata_parameters(metadata)
        retry = task.get("retryPolicy")
        given = [argument("pod-spec-patch", _output(driver, "pod-spec-patch"))]
        given.append({**argument("cached-decision", _output(driver, "cached-decision")), "default": "false"})
        given += [argument(key, value) for key, value in named]
        if retry:
            durations = {RETRY[1]: retry.get("backoffDuration"), RETRY[3]: retry.get("backoffMaxDuration")}
            values = {RETRY[0]: retry.get("maxRetryCount", 0), RETRY[2]: retry.get("backoffFactor", 0)}
            values |= {key: value.rstrip("s") for key, value in durations.items() if value}
            given += [argument(key, values[key]) for key in RETRY if key in values]
        template = self._executor_template(metadata, [key for key, _ in named], bool(retry))
        return {"name": name, "template": template, "arguments": {"parameters": given}, **_hooks(hook)}

    def _executor_template(self, metadata: Json | None, named: list[str], retried: bool) -> str:
        """Add the pair of templates that all tasks with equal retries and pod metadata share (container.go:362)."""
        prefix = "retry-" if retried else ""
        if metadata is not None:
            counts = [str(len(metadata.get(kind, {}))) for kind in ("annotations", "labels")]
            prefix = f"metadata-{'-'.join(counts)}-{prefix}"
        outer, inner = f"{prefix}system-container-executor", f"{prefix}system-container-impl"
        if outer in self.templates:
            return outer
        retries = list(RETRY) if retried else []
        passed = [argument(key, input_reference(key)) for key in ("pod-spec-patch", *named, *retries)]
        inputs = [{"name": "pod-spec-patch"}, {"name": "cached-decision", "default": "false"}]
        inputs += [*parameters(*named), *({"name": key, "default": "0"} for key in retries)]
        call = {"name": "executor", "template": inner, "arguments": {"parameters": passed}}
        call["when"] = f"{input_reference('cached-decision')} != true"
        self._add_dag(outer, inputs, [call])
        impl = executor(inner, parameters("pod-spec-patch", *named, *retries))
        for kind, part in (("labels", "label"), ("annotations", "annotation")):
            keys = [key for key in named if key.startswith(f"pod-metadata-{part}-key")]
            impl["metadata"].setdefault(kind, {}).update(
                {input_reference(k): input_reference(k.replace("-key", "-val")) for k in keys}
            )
        impl["metadata"] = {kind: value for kind, value in impl["metadata"].items() if value}
        if retried:
            limit, duration, factor, longest = (input_reference(key) for key in RETRY)
            backoff = {"duration": duration, "factor": factor, "maxDuration": longest}
            impl["retryStrategy"] = {"limit": limit, "backoff": backoff}
            impl["container"]["env"] = [*POD_ENV, {"name": "KFP_RETRY_INDEX", "value": "{{retries}}"}]
        self.templates[inner] = impl
        return outer

    def _dag_driver(self, name: str, inputs: list[Json], component: str) -> Json:
        self.templates.setdefault("system-dag-driver", dag_driver(self.spec["pipelineInfo"]["name"]))
        given = [argument("component", self._use("components", component)), *inputs]
        return {"name": name, "template": "system-dag-driver", "arguments": {"parameters": given}}


def _hooks(template: str | None) -> Json:
    arguments = {"parameters": parameters(parent_dag_id=input_reference("parent-dag-id"))}
    return {"hooks": {"exit": {"template": template, "arguments": arguments}}} if template else {}


def _metadata_parameters(metadata: Json | None) -> list[tuple[str, str]]:
    """Number the keys and values of pod annotations and labels (container.go:704)."""
    named = []
    for kind, part in (("annotations", "annotation"), ("labels", "label")):
        items = sorted((metadata or {}).get(kind, {}).items())
        for number, (key, value) in enumerate(items, 1):
            end = f"-{number}" if len(items) > 1 else ""
            named += [(f"pod-metadata-{part}-key{end}", key), (f"pod-metadata-{part}-val{end}", value)]
    return named
