"""The same pipeline, launched by Airflow's operator."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.installation import FEW, Installation, Launched

Seen = Callable[[str, object], None]
PROGRAM = Path(__file__).with_name("operate.py")


def operate(installation: Installation, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Launch a run by Airflow's operator; return what it ends with."""
    python = installation.needs("AIRFLOW", installation.airflow)
    connection = {
        "conn_type": "kubeflow",
        "host": installation.host,
        "extra": {
            "namespace": installation.user_namespace,
            "experiment": installation.prefix,
            "token_file": installation.token_file,
            "ca": installation.ca,
            "ui": installation.ui,
        },
    }
    own = {"AIRFLOW_HOME": str(installation.folder / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    own["AIRFLOW_CONN_KUBEFLOW_DEFAULT"] = json.dumps(connection)
    if installation.mlflow:
        own["AIRFLOW_CONN_HARDCASE_MLFLOW"] = json.dumps({"conn_type": "http", "host": installation.mlflow})
    given = {
        "key": f"{installation.prefix}-{name}",
        "pipeline": installation.package.name,
        "package": str(installation.folder / "retraining.yaml"),
        "parameters": parameters,
        "account": "pipeline-runner",
        "poll": 2,
    }
    done = subprocess.run(
        [python, str(PROGRAM), json.dumps(given)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=installation.limit,
    )
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0 and lines, f"the operator ended with {done.returncode}: {done.stderr.strip()[-600:]}"
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def test_airflow_finds_the_run_of_the_same_key(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    result = operate(installation, "smoke", installation.settings())
    assert result["state"] == "SUCCEEDED", result
    assert result["run_id"] == succeeded.run_id, "another run was started"
    record_property("seen", result["link"])


def test_airflow_launches_a_run_and_follows_it(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    result = operate(installation, "airflow", installation.settings())
    assert result["state"] == "SUCCEEDED", result
    assert set(result["steps"].values()) <= {"succeeded", "cached"}
    record_property("seen", f"{result['link']}, {len(result['steps'])} steps")


def test_airflow_does_not_launch_a_refused_input_again(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    installation.needs("MLFLOW", installation.mlflow)  # without it nobody tells Airflow why a run failed
    result = operate(installation, "airflow-refused", installation.settings(**FEW))
    assert result["state"] == "FAILED" and not result["again"], result
    assert "at validate" in result["message"] and "min_train_rows" in result["message"]
    record_property("seen", result["message"])
