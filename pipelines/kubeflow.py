"""The pipeline as Kubeflow takes it: the compiled YAML, kept beside the source and compared with it."""

import tempfile
from pathlib import Path

from kfp.compiler import Compiler

from hardcase.errors import InputError
from pipelines.retraining import retraining

COMPILED = Path(__file__).with_name("retraining.yaml")


def compiled() -> str:
    """The pipeline's YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "retraining.yaml"
        Compiler().compile(retraining, str(path))
        return path.read_text(encoding="utf-8")


def write() -> None:
    """Write the committed YAML anew."""
    COMPILED.write_text(compiled(), encoding="utf-8")


def check() -> None:
    """Raise an `InputError` where the committed YAML is not what the source compiles to."""
    if not COMPILED.is_file() or COMPILED.read_text(encoding="utf-8") != compiled():
        raise InputError(f"{COMPILED.name}: not what the pipeline's source compiles to; run `hardcase compile`")
