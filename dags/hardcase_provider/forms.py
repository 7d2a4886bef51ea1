"""What the forms of several DAGs ask for, in one place."""

import os
from typing import Any, Final

from airflow.sdk import Param

from hardcase_provider.operators import REPOSITORY

SOURCE: Final = r"^(procedural://|s3://|file:///|snapshot:|/)\S*$"
# Where they are not at hand, the compiled pipeline says at the launch which ones it takes.
PROFILES: Final = sorted(path.stem for path in (REPOSITORY / "hardcase" / "profiles").glob("*.yaml"))


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
    """Configuration in profiles/."""
    known: dict[str, Any] = {"enum": PROFILES} if PROFILES else {"pattern": r"^[a-z0-9][a-z0-9._-]*$"}
    default = os.environ.get("HARDCASE_PROFILE", "tiny")
    return Param(default, type="string", title="Profile", description=description, **known)
