"""The pipelines as Kubeflow takes them: compiled YAML, kept beside the source and compared with it."""

import tempfile
from pathlib import Path

from kfp.compiler import Compiler

from hardcase.errors import InputError
from pipelines.cluster import evaluation_on_cluster, retraining_on_cluster

FOLDER = Path(__file__).parents[1] / "hardcase" / "compiled"
PIPELINES = {"retraining": retraining_on_cluster, "evaluation": evaluation_on_cluster}


def compiled(name: str) -> str:
    """A pipeline's YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        Compiler().compile(PIPELINES[name], str(path))
        return path.read_text(encoding="utf-8")


def write() -> None:
    """Write the committed YAML."""
    for name in PIPELINES:
        (FOLDER / f"{name}.yaml").write_text(compiled(name), encoding="utf-8")


def check() -> None:
    """Raise an `InputError` where the committed YAML is not what the source compiles to."""
    for name in PIPELINES:
        path = FOLDER / f"{name}.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != compiled(name):
            raise InputError(f"{path.name}: not what the pipeline's source compiles to; run `hardcase compile`")
