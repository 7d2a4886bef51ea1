"""Do what the driver of Kubeflow Pipelines 2.17.0 does: resolve a task's inputs and write the patch of its pod.

Follows kubeflow/pipelines 2.17.0, backend/src/v2/driver: resolve.go (inputs), dag.go (groups and loops), container.go
and driver.go (executor input, outputs, resources, command), k8s.go (what kfp-kubernetes adds). Not followed: the
fingerprint of the cache (a run is cached or it is not), conditions, plugins, proxies, model cars and workspaces. What
ML Metadata would hold is in `Driver.executions`.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.argo_templates import Json, go_json, proto_json

CHANNEL = re.compile(r"\$.inputs.parameters\['(.+?)'\]")  # util.go:41
RESOURCES = {  # of the patch, the field of the container's spec, and how a number is written (driver.go:363)
    ("limits", "memory"): ("resourceMemoryLimit", "memoryLimit", "{}G"),
    ("requests", "memory"): ("resourceMemoryRequest", "memoryRequest", "{}G"),
    ("limits", "cpu"): ("resourceCpuLimit", "cpuLimit", "{}"),
    ("requests", "cpu"): ("resourceCpuRequest", "cpuRequest", "{}"),
}
STORE_SESSION = json.dumps({"Provider": "s3", "Params": {"fromEnv": "true", "region": "eu-central-1"}})


@dataclass
class Execution:
    """A task's entry in ML Metadata."""

    id: int
    component: Json
    parameters: Json
    artifacts: dict[str, list[Json]]
    outputs: Json = field(default_factory=dict)
    artifacts_out: dict[str, list[Json]] = field(default_factory=dict)


@dataclass
class Driver:
    """The drivers of one run.

    Args:
        produce: values of a task's output parameters, from its component.
        seal: metadata of a task's output artifacts, by output, from the task's name and its entry.
        cached: whether every task that may be is found in the cache.
        root: URI below which artifacts lie.
    """

    produce: Callable[[Json], Json]
    seal: Callable[[str, "Execution"], dict[str, Json]]
    cached: bool = False
    root: str = "s3://hardcase-artifacts-eu/kfp"
    pipeline: str = "namespace/hardcase/pipeline/hardcase-retraining"
    run: str = "24283211-e4a6-4460-92ee-e16d7437fb4d"
    executions: dict[tuple[int, str, int], Execution] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)  # executor inputs by task
    random: Random = field(default_factory=lambda: Random(0))

    def drive(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return a driver pod's output parameters from its input parameters (main.go:504)."""
        component = json.loads(given["component"])
        if given.get("driver-type") == "ROOT_DAG":
            parameters = json.loads(given["runtime-config"]).get("parameterValues", {})
            execution = self._record((0, "", -1), component, parameters, {})
            return {"execution-id": str(execution.id), "iteration-count": "0", "condition": "nil"}
        task, name = json.loads(given["task"]), given["task-name"]
        parent, index = int(given["parent-dag-id"]), int(given["iteration-index"])
        parameters, artifacts = self._resolve(task, component, parent, index)
        execution = self._record((parent, name, index), component, parameters, artifacts)
        if "container" not in given:
            count = len(parameters[_items(task)]) if "parameterIterator" in task and index < 0 else 0
            return {"execution-id": str(execution.id), "iteration-count": str(count), "condition": "nil"}
        outputs = self._provision(name, component, execution)
        if self.cached and task.get("cachingOptions", {}).get("enableCache"):
            return {"pod-spec-patch": "", "cached-decision": "true", "condition": "nil"}
        executor_input: Json = {"inputs": {"parameterValues": parameters}, "outputs": outputs}
        if artifacts:
            executor_input["inputs"]["artifacts"] = {name: {"artifacts": items} for name, items in artifacts.items()}
        self.inputs[name] = proto_json(executor_input)
        settings = json.loads(given.get("kubernetes-config") or "{}")
        patch = self._patch(execution, json.loads(given["container"]), parameters, self.inputs[name])
        self._extend(patch, settings, parent)
        return {"pod-spec-patch": go_json(patch), "cached-decision": "false", "condition": "nil"}

    def _record(self, key: tuple[int, str, int], component: Json, parameters: Json, artifacts: Any) -> Execution:
        number = self.executions[key].id if key in self.executions else len(self.executions) + 1  # container.go:196
        self.executions[key] = Execution(number, component, parameters, artifacts)
        return self.executions[key]

    def _find(self, number: int) -> Execution:
        return next(execution for execution in self.executions.values() if execution.id == number)

    def _resolve(self, task: Json, component: Json, parent: int, index: int) -> tuple[Json, dict[str, list[Json]]]:
        dag = self._find(parent)
        if index >= 0 and "parameterIterator" in task:  # an iteration has its loop's inputs (resolve.go:268)
            parameters = {name: value for name, value in dag.parameters.items() if name != _items(task)}
            parameters[task["parameterIterator"]["itemInput"]] = dag.parameters[_items(task)][index]
            return parameters, dag.artifacts
        wanted = task.get("inputs", {})
        parameters = {n: self.value(s, parent, task) for n, s in wanted.get("parameters", {}).items()}
        for name, about in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if about["parameterType"] == "STRING" and name in parameters and not isinstance(parameters[name], str):
                parameters[name] = proto_json(parameters[name])  # resolve.go:212
        artifacts = {n: self._artifacts(s, parent) for n, s in wanted.get("artifacts", {}).items()}
        return parameters, artifacts

    def value(self, source: Json, parent: int, task: Json | None = None) -> Any:
        """Return a parameter's value (resolve.go:375).

        Raises:
            KeyError: the group has no such input, or no such task ended before: the driver fails.
        """
        if "componentInputParameter" in source:
            return self._find(parent).parameters[source["componentInputParameter"]]
        if wanted := source.get("taskOutputParameter"):
            return self.executions[parent, wanted["producerTask"], -1].outputs[wanted["outputParameterKey"]]
        if "taskFinalStatus" in source:
            name = (task or {})["dependentTasks"][0]
            return {"state": "COMPLETE", "pipelineTaskName": name, "pipelineJobResourceName": "workflow", "error": {}}
        return source["runtimeValue"]["constant"]

    def _artifacts(self, source: Json, parent: int) -> list[Json]:
        if "componentInputArtifact" in source:
            return self._find(parent).artifacts[source["componentInputArtifact"]]
        wanted = source["taskOutputArtifact"]
        return self._collect(parent, wanted["producerTask"], wanted["outputArtifactKey"])

    def _collect(self, parent: int, task: str, key: str) -> list[Json]:
        """Return an output of a task, of a task in a group, or of all items of a loop (resolve.go:700)."""
        execution = self.executions[parent, task, -1]
        if "dag" not in execution.component:
            return execution.artifacts_out[key]
        (selector,) = execution.component["dag"]["outputs"]["artifacts"][key]["artifactSelectors"]
        items = sorted(
            (k, e) for k, e in self.executions.items() if k[0] == execution.id and k[1] == task and k[2] >= 0
        )
        groups = [item.id for _, item in items] or [execution.id]
        return [a for g in groups for a in self._collect(g, selector["producerSubtask"], selector["outputArtifactKey"])]

    def _provision(self, task: str, component: Json, execution: Execution) -> Json:
        """Return where a task puts its outputs (driver.go:741), and note what it will have put there."""
        defined = component.get("outputDefinitions", {})
        place = f"{self.root}/{self.pipeline}/{self.run}/{task}/{uuid.UUID(int=self.random.getrandbits(128))}"
        local = place.replace("s3://", "/s3/")
        outputs: Json = {"outputFile": f"{local}/output_metadata.json"}
        sealed = self.seal(task, execution)
        for name, about in defined.get("artifacts", {}).items():
            artifact = {"name": name, "uri": f"{place}/{name}", "type": about["artifactType"]}
            outputs.setdefault("artifacts", {})[name] = {"artifacts": [artifact]}
            metadata = {"display_name": name, "store_session_info": STORE_SESSION, **sealed.get(name, {})}
            number = str(100 + len(execution.artifacts_out) + 10 * execution.id)
            artifact_entry = {
                "name": number,
                "uri": artifact["uri"],
                "type": {"instanceSchema": ""},
                "metadata": metadata,
            }
            execution.artifacts_out[name] = [artifact_entry]
        if defined.get("parameters"):
            outputs["parameters"] = {name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in defined["parameters"]}
            execution.outputs = self.produce(component)
        return outputs

    def _patch(self, execution: Execution, container: Json, parameters: Json, executor_input: str) -> Json:
        """Return the pod's patch (driver.go:246)."""
        arguments = ["--executor_input", executor_input, "--component_spec", proto_json(execution.component)]
        run = ["--pipeline_name", self.pipeline, "--run_id", self.run, "--execution_id", str(execution.id)]
        pod = ["--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"]
        servers = ["--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local"]
        servers += ["--ml_pipeline_server_port", "8887"]
        servers += ["--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local"]
        servers += ["--mlmd_server_port", "8080", "--publish_logs", ""]
        main = {
            "name": "main",
            "image": read_text(container["image"], parameters),
            "command": ["/kfp-launcher/launch", *run, *arguments, *pod, *servers, "--"],
            "args": [*container.get("command", []), *container.get("args", [])],
            "env": [dict(variable) for variable in container.get("env", [])],
            "resources": container_resources(container, parameters),
        }
        return {"containers": [main]}

    def _extend(self, patch: Json, settings: Json, parent: int) -> None:
        """Add what kfp-kubernetes asks for (k8s.go:131)."""
        main = patch["containers"][0]
        main["env"] += self._environment(settings, parent)
        if mounted := self._mounts(settings, parent):
            patch["volumes"] = [{"name": name, **source} for name, _, source in mounted]
            main["volumeMounts"] = [{"name": name, "mountPath": path} for name, path, _ in mounted]
        if security := settings.get("securityContext"):
            ids = {name: int(security[name]) for name in ("runAsUser", "runAsGroup") if name in security}
            root = {"runAsNonRoot": security["runAsNonRoot"]} if "runAsNonRoot" in security else {}
            main["securityContext"] = {"capabilities": {"drop": ["ALL"]}, **ids, **root}
        if selector := settings.get("nodeSelector"):
            source = selector.get("nodeSelectorJson")
            patch["nodeSelector"] = self.value(source, parent) if source else selector["labels"]
        if tolerations := settings.get("tolerations"):
            patch["tolerations"] = tolerations
        if seconds := settings.get("activeDeadlineSeconds"):
            patch["activeDeadlineSeconds"] = int(seconds)

    def _named(self, entry: Json, parent: int, parameter: str, plain: str) -> str:
        return str(self.value(entry[parameter], parent) if parameter in entry else entry[plain])

    def _environment(self, settings: Json, parent: int) -> list[Json]:
        variables = []
        for kind, key, ref in (
            ("secret", "secretKey", "secretKeyRef"),
            ("configMap", "configMapKey", "configMapKeyRef"),
        ):
            for entry in settings.get(f"{kind}AsEnv", []):
                common = {"name": self._named(entry, parent, f"{kind}NameParameter", f"{kind}Name")}
                common |= {"optional": entry["optional"]} if "optional" in entry else {}
                for pair in entry["keyToEnv"]:
                    variables.append({"name": pair["envVar"], "valueFrom": {ref: {**common, "key": pair[key]}}})
        for entry in settings.get("fieldPathAsEnv", []):
            variables.append({"name": entry["name"], "valueFrom": {"fieldRef": {"fieldPath": entry["fieldPath"]}}})
        return variables

    def _mounts(self, settings: Json, parent: int) -> list[tuple[str, str, Json]]:
        """Return names, paths and sources of volumes."""
        mounts: list[tuple[str, str, Json]] = []
        for entry in settings.get("pvcMount", []):
            name = self._named(entry, parent, "pvcNameParameter", "constant")
            mounts.append((name, entry["mountPath"], {"persistentVolumeClaim": {"claimName": name}}))
        for kind, field_name in (("secret", "secretName"), ("configMap", "name")):
            for entry in settings.get(f"{kind}AsVolume", []):
                name = self._named(entry, parent, f"{kind}NameParameter", f"{kind}Name")
                source = {field_name: name, "optional": entry.get("optional", False)}
                mounts.append((name, entry["mountPath"], {kind: source}))
        for entry in settings.get("genericEphemeralVolume", []):
            asked = {"accessModes": entry["accessModes"], "resources": {"requests": {"storage": entry["size"]}}}
            claim = {"volumeClaimTemplate": {"metadata": {}, "spec": asked}}
            mounts.append((entry["volumeName"], entry["mountPath"], {"ephemeral": claim}))
        for entry in settings.get("emptyDirMounts", []):
            limits = {name: entry[name] for name in ("medium", "sizeLimit") if name in entry}
            mounts.append((entry["volumeName"], entry["mountPath"], {"emptyDir": limits}))
        return mounts


def read_text(text: str, parameters: Mapping[str, Any]) -> str:
    """Resolve a pod's field; a channel that holds no string gives the empty string (resolve.go:818)."""
    if not (channel := CHANNEL.search(text)):
        return text
    value = parameters[channel[1]]
    return value if isinstance(value, str) else ""


def container_resources(container: Json, parameters: Mapping[str, Any]) -> Json:
    """Return the resources of a task's pod (driver.go:363).

    Raises:
        ValueError: a quantity is empty: the driver fails.
    """
    asked = container.get("resources", {})
    amounts: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    for (kind, name), (text, number, form) in RESOURCES.items():
        if text in asked:
            amounts[kind][name] = _quantity(name, read_text(asked[text], parameters))
        elif number in asked:
            amounts[kind][name] = form.format(asked[number])
    if accelerator := asked.get("accelerator"):
        count = read_text(accelerator.get("resourceCount", accelerator.get("count", "")), parameters)
        kind = read_text(accelerator.get("resourceType", accelerator.get("type", "")), parameters)
        if kind and count:
            amounts["limits"][kind] = _quantity(kind, count)
    return {kind: values for kind, values in amounts.items() if values}


def _quantity(name: str, text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(m|[kKMGTPE]i?)?", text):
        raise ValueError(f"{name}: {text!r} is no quantity")
    return text


def _items(task: Json) -> str:
    iterator = task["parameterIterator"]
    return str(iterator["items"].get("inputParameter", iterator["itemInput"]))
