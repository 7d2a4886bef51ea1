"""A compiled pipeline as it is sent to Kubeflow: its images, its version, and what its parameters may be.

Everything is read from the YAML itself, the pipeline spec of KFP and behind it the settings for Kubernetes.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from hardcase.compiled import FOLDER
from hardcase.errors import InputError
from hardcase.kubeflow.launching import check_parameters, name_version

PINNED: Final = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
REFERENCE: Final = re.compile(r"[A-Za-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?")
IMAGE_VARIABLE: Final = "HARDCASE_IMAGE"


@dataclass(frozen=True)
class Package:
    """A compiled pipeline."""

    name: str  # of the pipeline in Kubeflow
    content: bytes  # the YAML
    inputs: Mapping[str, Mapping[str, Any]]  # of the pipeline's parameters, by name, as the spec defines them
    images: Mapping[str, str]  # of each executor
    description: str = ""  # what it does and what its parameters mean

    @property
    def version(self) -> str:
        """Name of the version that has this content."""
        return name_version(self.name, self.content)

    @property
    def loose(self) -> list[str]:
        """Images that are not pinned by digest."""
        return sorted({image for image in self.images.values() if not PINNED.fullmatch(image)})


def load_package(pipeline: str) -> Package:
    """Return the compiled pipeline of that name in the package, or in that YAML file.

    Raises:
        InputError: there is none.
    """
    path = Path(pipeline) if pipeline.endswith((".yaml", ".yml")) else FOLDER / f"{pipeline}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.yaml")))
        raise InputError(f"--pipeline {pipeline}: no such pipeline; there are {known}, or name a compiled YAML file")
    return _package(path.read_bytes(), str(path))


def _package(content: bytes, where: str) -> Package:
    spec = _documents(content, where)[0]
    return Package(
        name=spec["pipelineInfo"]["name"],
        content=content,
        inputs=spec["root"].get("inputDefinitions", {}).get("parameters", {}),
        images={name: container["image"] for name, container in _containers(spec).items()},
        description=spec["pipelineInfo"].get("description", ""),
    )


def _documents(content: bytes, where: str) -> list[dict[str, Any]]:
    """Return the documents of a compiled pipeline.

    Kubeflow's server reads a file that is no YAML for ever, and burns a processor until it is restarted
    (kubeflow/pipelines 2.17.0, backend/src/apiserver/template/template.go:75), so nothing else is ever sent.
    """
    from google.protobuf.json_format import ParseDict, ParseError
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

    try:
        documents = list(yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not YAML ({error}); `hardcase compile` writes the pipeline") from error
    try:
        first, *others = documents
        if not {"pipelineInfo", "root", "deploymentSpec"} <= set(first):
            raise ValueError("it has no pipelineInfo, root and deploymentSpec")
        ParseDict(first, PipelineSpec())
        if len(others) > 1 or any(set(other) != {"platforms"} for other in others):
            raise ValueError("behind it stands something else than settings for Kubernetes")
    except (ValueError, TypeError, ParseError) as error:
        raise InputError(f"{where}: not a compiled pipeline ({error}); `hardcase compile` writes one") from error
    return documents


def _containers(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    executors = spec["deploymentSpec"].get("executors", {})
    return {name: executor["container"] for name, executor in executors.items() if "container" in executor}


def replace_images(package: Package, replacements: Sequence[str]) -> Package:
    """Return the package with other images; each executor whose image is pinned receives the name of its image.

    The signed record of a step names that image (`HARDCASE_IMAGE`), so it is said only where a digest proves it.

    Raises:
        InputError: not of that form, not an image of the pipeline, or not a reference.
    """
    chosen = dict[str, str]()
    for replacement in replacements:
        old, equals, new = replacement.partition("=")
        if not equals or not REFERENCE.fullmatch(new):
            raise InputError(f"--image {replacement}: not of the form IMAGE=REPOSITORY@sha256:DIGEST")
        if old not in package.images.values():
            there = ", ".join(sorted(set(package.images.values())))
            raise InputError(f"--image {replacement}: the pipeline has no image {old!r}; it has {there}")
        chosen[old] = new
    documents = _documents(package.content, package.name)
    before = json.dumps(documents)
    for container in _containers(documents[0]).values():
        container["image"] = image = chosen.get(container["image"], container["image"])
        if PINNED.fullmatch(image):
            others = [each for each in container.get("env", []) if each["name"] != IMAGE_VARIABLE]
            container["env"] = [*others, {"name": IMAGE_VARIABLE, "value": image}]
    if json.dumps(documents) == before:
        return package
    return _package(yaml.safe_dump_all(documents, sort_keys=True).encode(), package.name)


def parse_parameters(package: Package, given: Sequence[str]) -> dict[str, Any]:
    """Return the values of a launch, typed as the pipeline defines them.

    Raises:
        InputError: one is not of that form, or given twice.
        Refused: a parameter that there is not, one that is missing, or a value that it does not take.
    """
    values = dict[str, Any]()
    for setting in given:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"-p {setting}: not of the form name=value")
        if name in values:
            raise InputError(f"parameter {name!r}: given twice; say it once")
        try:
            values[name] = READERS.get(package.inputs.get(name, {}).get("parameterType"), str)(text)
        except (KeyError, ValueError):
            values[name] = text  # of another type than the pipeline takes
    check_parameters(package.name, package.inputs, values)
    return values


def _read_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


READERS: Final[Mapping[Any, Callable[[str], Any]]] = {
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": _read_number,
    "BOOLEAN": lambda text: {"true": True, "false": False}[text.lower()],
    "LIST": json.loads,
    "STRUCT": json.loads,
}
