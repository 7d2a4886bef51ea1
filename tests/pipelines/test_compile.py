"""The committed YAML is what Kubeflow gets: it must be the pipeline in the source."""

import subprocess
import sys

import pytest
import yaml

from pipelines import kubeflow
from pipelines.retraining import STEPS


def test_committed_yaml_is_what_the_source_compiles_to() -> None:
    kubeflow.check()


def test_compiled_pipeline_has_every_step_and_validation_gates_training() -> None:
    spec = yaml.safe_load(kubeflow.COMPILED.read_text(encoding="utf-8"))
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == set(STEPS)
    assert "validate" in tasks["sft"]["dependentTasks"]


@pytest.mark.parametrize("step", ["ingest", "validate", "drift", "register", "report"])
def test_light_step_starts_without_torch(step: str) -> None:
    code = (
        f"import sys, components.{step}.step, components.running; "
        "sys.exit(', '.join({'torch', 'transformers', 'trl', 'kfp'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
