"""Make the templates that every workflow of Kubeflow Pipelines 2.17.0 shares: those of drivers and executors.

Follows kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler: container.go, dag.go, common.go,
security_context.go; lines are named where they are followed.
"""

import json
from typing import Any

Json = dict[str, Any]

NAMESPACE = "kubeflow"
SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
POD_ENV = [
    {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    {"name": "KFP_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
]
SCRATCH = {
    "kfp-launcher": "/kfp-launcher",
    "gcs-scratch": "/gcs",
    "s3-scratch": "/s3",
    "minio-scratch": "/minio",
    "dot-local-scratch": "/.local",
    "dot-cache-scratch": "/.cache",
    "dot-config-scratch": "/.config",
}


def go_json(value: Any) -> str:
    """Encode as Go's encoding/json does: integral numbers without a point, `<`, `>` and `&` escaped."""
    text = json.dumps(_integral(value), separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def proto_json(value: Any) -> str:
    """Encode as protojson does, which escapes no HTML; the spaces it adds at random are left out."""
    return json.dumps(_integral(value), separators=(",", ":"), ensure_ascii=False)


def _integral(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _integral(item) for name, item in sorted(value.items())}
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parameters(*names: str, **values: Any) -> list[Json]:
    """Return parameters without a value, then those with one."""
    return [{"name": name} for name in names] + [argument(name.replace("_", "-"), v) for name, v in values.items()]


def argument(name: str, value: Any) -> Json:
    """Return a parameter with a value, as text."""
    return {"name": name, "value": str(_integral(value))}


def input_reference(name: str) -> str:
    """Refer to an input of the template."""
    return f"{{{{inputs.parameters.{name}}}}}"


def template(name: str, inputs: list[Json], outputs: list[Json] | None = None, **body: Any) -> Json:
    """Return a template."""
    wrapped = {
        "inputs": {"parameters": inputs} if inputs else {},
        "outputs": {"parameters": outputs} if outputs else {},
    }
    return {"name": name, **wrapped, "metadata": {}, **body}


def container_driver(pipeline: str) -> Json:
    """Return the template of the drivers of container tasks (container.go:186)."""
    names = ["component", "task", "container", "task-name", "parent-dag-id"]
    inputs = [*parameters(*names), {"name": "iteration-index", "default": "-1"}]
    inputs.append({"name": "kubernetes-config", "default": ""})
    outputs = [_path("pod-spec-patch", ""), {**_path("cached-decision", "false"), "default": "false"}]
    outputs.append(_path("condition", "true"))
    args = ["--type", "CONTAINER", *_driver_args(pipeline), *_flags("component", "task", "task-name", "container")]
    args += [*_flags("iteration-index"), *_paths("cached-decision", "pod-spec-patch", "condition")]
    args += _flags("kubernetes-config")
    return _driver("system-container-driver", inputs, outputs, args, POD_ENV)


def dag_driver(pipeline: str) -> Json:
    """Return the template of the drivers of groups (dag.go:565)."""
    defaults = {"runtime-config": "", "task": "", "task-name": "", "parent-dag-id": "0", "iteration-index": "-1"}
    inputs = [{"name": "component"}, *({"name": n, "default": v} for n, v in defaults.items())]
    inputs.append({"name": "driver-type", "default": "DAG"})
    outputs = [_path("execution-id"), _path("iteration-count", "0"), _path("condition", "true")]
    args = [
        "--type",
        input_reference("driver-type"),
        *_driver_args(pipeline),
        *_flags("component", "task", "task-name"),
    ]
    args += _flags("runtime-config", "iteration-index")
    args += _paths("execution-id", "iteration-count", "condition")
    return _driver("system-dag-driver", inputs, outputs, args, [])


def _driver_args(name: str) -> list[str]:
    pipeline = ["--pipeline_name", name, "--run_id", "{{workflow.uid}}"]
    run = ["--run_name", "{{workflow.name}}", "--run_display_name", ""]
    created = ["--pipeline_job_create_time_utc", "{{workflow.creationTimestamp}}"]
    return [*pipeline, *run, *created, "--dag_execution_id", input_reference("parent-dag-id")]


def _path(name: str, default: str | None = None) -> Json:
    given = {} if default is None else {"default": default}
    return {"name": name, "valueFrom": {"path": f"/tmp/outputs/{name}", **given}}


def _flags(*names: str) -> list[str]:
    return [part for name in names for part in (f"--{name.replace('-', '_')}", input_reference(name))]


def _paths(*names: str) -> list[str]:
    return [p for n in names for p in (f"--{n.replace('-', '_')}_path", f"{{{{outputs.parameters.{n}.path}}}}")]


def _driver(name: str, inputs: list[Json], outputs: list[Json], args: list[str], env: list[Json]) -> Json:
    servers = ["--ml_pipeline_server_address", f"ml-pipeline.{NAMESPACE}.svc.cluster.local"]
    servers += ["--ml_pipeline_server_port", "8887"]
    servers += ["--mlmd_server_address", f"metadata-grpc-service.{NAMESPACE}.svc.cluster.local"]
    servers += ["--mlmd_server_port", "8080"]
    container: Json = {
        "name": "",
        "image": "ghcr.io/kubeflow/kfp-driver:latest",
        "command": ["driver"],
        "args": [*args, "--http_proxy", "", "--https_proxy", "", "--no_proxy", "", *servers],
        "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "securityContext": {**CONTAINER_SECURITY, "runAsNonRoot": True},
        **({"env": env} if env else {}),
    }
    filled = template(name, inputs, outputs, container=container, securityContext=SECURITY)
    return {**filled, "metadata": {"annotations": {"pipelines.compile.org/runtime-role": "driver"}}}


def executor(name: str, inputs: list[Json]) -> Json:
    """Return the template of the pods of container tasks (container.go:453)."""
    launcher: Json = {
        "name": "kfp-launcher",
        "image": "ghcr.io/kubeflow/kfp-launcher:latest",
        "command": ["launcher-v2"],
        "args": ["--copy", "/kfp-launcher/launch"],
        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m"}},
        "securityContext": {**CONTAINER_SECURITY, "runAsNonRoot": True},
        "volumeMounts": [{"name": "kfp-launcher", "mountPath": "/kfp-launcher"}],
    }
    container: Json = {
        "name": "",
        "image": "gcr.io/ml-pipeline/should-be-overridden-during-runtime",
        "command": ["should-be-overridden-during-runtime"],
        "env": POD_ENV,
        "envFrom": [{"configMapRef": {"name": "metadata-grpc-configmap", "optional": True}}],
        "resources": {},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": volume, "mountPath": place} for volume, place in SCRATCH.items()],
    }
    filled = template(name, inputs, container=container, initContainers=[launcher])
    filled["volumes"] = [{"name": volume, "emptyDir": {}} for volume in SCRATCH]
    filled["podSpecPatch"] = input_reference("pod-spec-patch")
    filled["securityContext"] = {"seccompProfile": {"type": "RuntimeDefault"}}
    return {**filled, "metadata": {"annotations": {"pipelines.compile.org/runtime-role": "launcher"}}}
