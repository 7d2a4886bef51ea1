"""Every command works as a user by number only: no account, no HOME, as OpenShift and `docker run --user` start it."""

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.support.machine import COMMAND

UID = "54321"


def call(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    bare = ["unshare", "--user", f"--map-user={UID}", f"--map-group={UID}", "env", "-i", "PATH=/usr/bin:/bin"]
    command = [*bare, *(f"{name}={value}" for name, value in environment.items()), *COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    done = call(folder, "run", "--profile", "smoke", "--json", HOME="/")
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["model"]["version"] == 1
    Image.new("RGB", (48, 48), "red").save(folder / "image.png")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("runs",),
        ("report",),
        ("audit", "image-screener:1"),
        ("store", "gc"),
        ("store", "check", "other"),
        ("ingest", "--source", "procedural://?samples=8&seed=1"),
        ("source-digest", "procedural://?samples=8&seed=1"),
    ],
)
def test_command_works_without_account_and_home(folder: Path, arguments: tuple[str, ...]) -> None:
    done = call(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_images_are_screened_without_account_and_home(folder: Path) -> None:
    done = call(folder, "screen", "--model", "image-screener:1", *["image.png"] * 5)
    assert done.stdout.count("invalid answer") == 4, "the model of the profile smoke is too small"
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
