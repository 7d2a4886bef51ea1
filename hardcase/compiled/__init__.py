"""The compiled pipelines that every runner executes. `python -m pipelines.compile` writes them from `pipelines/`."""

from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent


@cache
def read_pipeline(name: str) -> dict[str, Any]:
    """Return the pipeline spec of that name; the settings for Kubernetes are left out."""
    content = (FOLDER / f"{name}.yaml").read_bytes()
    spec: dict[str, Any] = next(yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return spec


def list_steps(name: str) -> list[str]:
    """Return the steps of a pipeline in the order in which they run, without its exit handler."""
    spec = read_pipeline(name)
    (body,) = (task for task in spec["root"]["dag"]["tasks"].values() if "triggerPolicy" not in task)
    tasks = spec["components"][body["componentRef"]["name"]]["dag"]["tasks"]
    return list(
        TopologicalSorter({step: task.get("dependentTasks", ()) for step, task in tasks.items()}).static_order()
    )
