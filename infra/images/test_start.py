"""Start each image as a strict cluster does: read-only root, a user by a random number, no capabilities, no network.

`make e2e-images` runs these tests with the images that `make images` built; ENGINE=docker for Docker. Only /cache, /tmp
and other volumes of a pod can be written to.
"""
# ruff: noqa: S108

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

ENGINE = os.environ.get("ENGINE", "podman")
VERSION = os.environ["VERSION"]
PLACES = Path(__file__).with_name("places.py").read_text(encoding="utf-8")
SERVE = """
mlflow server --port=5000 &
python3 - <<END
import time, urllib.request
for _ in range(120):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:5000/health").read().decode())
        break
    except OSError:
        time.sleep(1)
END
kill $!
"""
LIST = "airflow db migrate >&2; airflow dags reserialize >&2; airflow dags list --output json"


def start(image: str, *command: str, volumes: tuple[str, ...] = ("/cache", "/tmp"), **variables: str) -> str:
    """Run a command in a container and return what it prints.

    Args:
        image: name without the version.
        command: command and its arguments.
        volumes: folders where an empty volume is mounted.
        variables: environment besides the image's own.
    """
    user = f"{random.randrange(100_000, 2**31)}:0"
    flags = ["--rm", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none"]
    if ENGINE == "podman":  # which else adds what a pod lacks: a writable /tmp, and the user's name in /etc/passwd
        flags += ["--read-only-tmpfs=false", "--passwd=false"]
    flags += [f"--tmpfs={volume}:mode=1777" for volume in volumes]
    flags += [f"--env={name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [ENGINE, "run", *flags, f"--user={user}", f"docker.io/hardcase/{image}:{VERSION}", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("image", "libraries"), [("python-light", []), ("python-train", ["all"])])
@pytest.mark.parametrize("volumes", [("/cache", "/tmp"), ("/tmp",)], ids=["mounted", "of the image"])
def test_libraries_write_to_the_volume(image: str, libraries: list[str], volumes: tuple[str, ...]) -> None:
    found = json.loads(start(image, "python3", "-c", PLACES, *libraries, volumes=volumes))
    assert found["user"] == "hardcase"
    assert not [folder for folder in found["folders"].values() if not Path(folder).is_relative_to("/cache")]


def test_the_training_image_trains() -> None:
    no_floor = ("--set=register.min_overall=0", "--set=register.min_valid=0")  # else the gate rejects it: exit code 3
    command = ("hardcase", "run", "--profile=smoke", "--json", *no_floor)
    printed = start("python-train", *command, HARDCASE_HOME="/tmp/home")
    assert json.loads(printed.splitlines()[-1])["steps"]["sft"]["status"] == "succeeded"


def test_the_light_image_reads_a_source() -> None:
    source = "--source=procedural://?samples=20&seed=7"
    printed = start("python-light", "hardcase", "ingest", source, "--json", HARDCASE_HOME="/tmp/home")
    assert json.loads(printed)["accepted"] > 0


def test_mlflow_answers() -> None:
    assert "OK" in start("mlflow", "sh", "-ec", SERVE, volumes=("/tmp",))


def test_airflow_finds_the_dags() -> None:
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////tmp/airflow.db"}
    printed = start("airflow", "sh", "-ec", LIST, volumes=("/tmp", "/opt/airflow/logs"), **database)
    assert "retraining" in {dag["dag_id"] for dag in json.loads(printed.splitlines()[-1])}
