"""What the forms of several DAGs ask for, in one place."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from airflow.sdk import Param

import hardcase

# Neither a user nor a query: a password or a signature would be in every record (hardcase/config/base.py).
URI: Final = r"(procedural://\S*|s3://[^\s@/?]+(/[^\s?]*)?|file:///[^\s?]*)"
ONE_SOURCE: Final = rf"^((snapshot:|/)\S*|{URI})$"
SOURCE: Final = rf"^((snapshot:|/)\S*|{URI}( {URI})*)$"
LONGEST_SOURCE: Final = 4096
EXAMPLES: Final = (
    "s3://bucket/prefix, file:///path, /path, snapshot:ID, procedural://… or several URIs with one space between"
)
PROFILES: Final = sorted(path.stem for path in (Path(hardcase.__file__).parent / "profiles").glob("*.yaml"))


def engine() -> Param:
    """Where it is run."""
    return Param(
        "auto",
        type="string",
        enum=["auto", "kubeflow", "local"],
        title="Engine",
        description="auto: as the connection kubeflow_default says.",
    )


def profile(description: str) -> Param:
    """One of the configurations that hardcase brings."""
    default = os.environ.get("HARDCASE_PROFILE", "tiny")
    return Param(default, type="string", title="Profile", description=description, enum=PROFILES)


def settings(description: str) -> Param:
    """Settings that differ, by key, as `hardcase run --set` takes them."""
    return Param(
        {},
        type="object",
        propertyNames={"pattern": r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$"},
        title="Settings",
        description=f'{description} Such as {{"sft.steps": 100}}.',
    )


def is_source(value: Any) -> bool:
    """Return whether the forms take a value as a source of samples."""
    return isinstance(value, str) and len(value) <= LONGEST_SOURCE and bool(re.fullmatch(SOURCE, value))


def write_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """Return the parameters of a pipeline as arguments of `hardcase`; a setting is JSON, which is YAML."""
    settings = [f"--set={key}={json.dumps(value)}" for key, value in parameters.get("settings", {}).items()]
    return [*(f"--{name}={value}" for name, value in parameters.items() if name != "settings"), *settings]
