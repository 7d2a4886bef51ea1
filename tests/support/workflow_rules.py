"""Find in a compiled pipeline what Kubeflow Pipelines 2.17.0 and Argo Workflows v4.0.5 would not do as it says.

Each finding is a sentence; a pipeline without findings passes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.argo import read_pipeline
from tests.support.argo_templates import Json
from tests.support.kfp_driver import CHANNEL

ARGUMENT = 128 * 1024  # longest argument of a process: Linux, include/uapi/linux/binfmts.h, MAX_ARG_STRLEN
# Fields of the container's spec that the driver reads with GetStringValue (driver.go:363-455, resolve.go:818).
TEXTS = ("resourceCpuLimit", "resourceCpuRequest", "resourceMemoryLimit", "resourceMemoryRequest")
# Kubernetes settings that take a parameter, and the types that the driver reads it by (k8s.go): a JSON object with
# resolveK8sJsonParameter (resolve.go:840), a toleration also as a list, a name with resolveInputParameterStr.
SETTINGS = {
    "nodeSelectorJson": {"STRUCT"},
    "nodeAffinityJson": {"STRUCT"},
    "tolerationJson": {"STRUCT", "LIST"},
    "secretNameParameter": {"STRING"},
    "configMapNameParameter": {"STRING"},
    "pvcNameParameter": {"STRING"},
}
# What `kfp_driver.py` follows.
KNOWN = {
    "activeDeadlineSeconds",
    "configMapAsEnv",
    "configMapAsVolume",
    "emptyDirMounts",
    "fieldPathAsEnv",
    "genericEphemeralVolume",
    "nodeSelector",
    "podMetadata",
    "pvcMount",
    "secretAsEnv",
    "secretAsVolume",
    "securityContext",
    "tolerations",
}


def find_unknown_settings(path: Path) -> list[str]:
    """Find settings of Kubernetes that this model leaves out, so that nothing passes unseen."""
    _, kubernetes = read_pipeline(path)
    return [f"{label}: {name}" for label, settings in kubernetes.items() for name in sorted({*settings} - KNOWN)]


def tasks(spec: Json) -> Iterator[tuple[str, Json, Json]]:
    """Yield name, task and group of each container task of all layers."""
    components = {"root": spec["root"], **spec["components"]}
    for group in components.values():
        for name, task in group.get("dag", {}).get("tasks", {}).items():
            if "dag" not in components[task["componentRef"]["name"]]:
                yield name, task, group


def find_wrong_types(path: Path) -> list[str]:
    """Find parameters that reach a field of Kubernetes with a type that the driver drops or fails at."""
    spec, kubernetes = read_pipeline(path)
    findings = []
    for name, task, group in tasks(spec):
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        container = spec["deploymentSpec"]["executors"][label]["container"]
        resources = container.get("resources", {})
        accelerator = resources.get("accelerator", {})
        texts = {field: resources.get(field, "") for field in TEXTS}
        texts |= {field: accelerator.get(field, "") for field in ("resourceType", "resourceCount")}
        for field, text in {**texts, "image": container["image"]}.items():
            if channel := CHANNEL.search(text):
                source = task["inputs"]["parameters"].get(channel[1])
                kind = _type(spec, group, source) if source else "nothing"
                if kind != "STRING":
                    findings.append(f"{name}: {field} is read as text, {channel[1]} is {kind}")
        for field, source in _sources(kubernetes.get(label, {})):
            kind = _type(spec, group, source)
            if kind not in SETTINGS[field]:
                findings.append(f"{name}: {field} is read as {'/'.join(sorted(SETTINGS[field]))}, it is {kind}")
    return findings


def _sources(settings: Any) -> Iterator[tuple[str, Json]]:
    if isinstance(settings, Mapping):
        for field, value in settings.items():
            if field in SETTINGS:
                yield field, value
            else:
                yield from _sources(value)
    elif isinstance(settings, list):
        for item in settings:
            yield from _sources(item)


def _type(spec: Json, group: Json, source: Json) -> str:
    """Return a parameter's type, as the group's inputs or the producer's outputs declare it; a constant has its own."""
    if name := source.get("componentInputParameter"):
        return str(group["inputDefinitions"]["parameters"].get(name, {}).get("parameterType", "nothing"))
    if output := source.get("taskOutputParameter"):
        producer = group["dag"]["tasks"].get(output["producerTask"])
        if producer is None:
            return "nothing"
        outputs = (
            spec["components"][producer["componentRef"]["name"]].get("outputDefinitions", {}).get("parameters", {})
        )
        return str(outputs.get(output["outputParameterKey"], {}).get("parameterType", "nothing"))
    constant = source["runtimeValue"]["constant"]
    if isinstance(constant, str):
        return "STRING" if constant else "an empty text"
    return "STRUCT" if isinstance(constant, dict) else "LIST" if isinstance(constant, list) else "a number"


def find_short_windows(path: Path) -> list[str]:
    """Find tasks whose attempts would not all be made, or be cut short.

    `maxDuration` counts from the start of the first attempt, and is the deadline of each later one
    (argo-workflows v4.0.5, workflow/controller/operator.go:1037 and :1095): it must hold all attempts and the waits
    between them. A window that is not given is `0` (kubeflow/pipelines 2.17.0, argocompiler/container.go:410), a factor
    that is no whole number fails the workflow (operator.go:1055).
    """
    spec, kubernetes = read_pipeline(path)
    findings = []
    for name, task, _ in tasks(spec):
        if not (retry := task.get("retryPolicy")):
            continue
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        timeout = int(kubernetes.get(label, {}).get("activeDeadlineSeconds", 0))
        count, factor = int(retry.get("maxRetryCount", 0)), float(retry.get("backoffFactor", 0))
        wait, window = (int(retry.get(key, "0s").rstrip("s")) for key in ("backoffDuration", "backoffMaxDuration"))
        needed = timeout * (count + 1) + sum(wait * max(int(factor), 1) ** i for i in range(count))
        if not timeout:
            findings.append(f"{name}: no timeout, its window of {window} s may end before it does")
        elif window <= needed:
            findings.append(f"{name}: a window of {window} s, {count + 1} attempts of {timeout} s take {needed} s")
        if not factor.is_integer():
            findings.append(f"{name}: the factor {factor} is no whole number")
    return findings


def find_long_arguments(inputs: Mapping[str, str]) -> list[str]:
    """Find executor inputs, by task, that the launcher cannot be started with."""
    return [f"{name}: {len(text.encode())} bytes" for name, text in inputs.items() if len(text.encode()) >= ARGUMENT]
