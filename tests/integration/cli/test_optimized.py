"""Under `python -O`, which removes every assertion, nothing passes that is refused otherwise."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.s3 import sloppy_endpoint

STORED = Path(__file__).parents[2] / "compat" / "2"


def call(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HARDCASE_HOME": str(home), "PYTHONOPTIMIZE": "1"}
    command = [sys.executable, "-m", "hardcase", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_endpoint_on_which_sixteen_writers_win_is_refused(tmp_path: Path) -> None:
    with sloppy_endpoint():
        done = call(tmp_path, "store", "check", "s3://bucket")
    assert done.returncode == 2
    assert "fails put if absent, 16 writers (16 of 16 writers won" in done.stderr


def test_ledger_copied_from_another_model_is_broken(tmp_path: Path) -> None:
    with tarfile.open(STORED / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    models = tmp_path / "store" / "models"
    shutil.copytree(models / "image-screener", models / "other")
    arguments = ("--store", str(tmp_path / "store"), "--key", str(STORED / "signing.pub"))
    assert call(tmp_path, "audit", "image-screener:1", *arguments).returncode == 0
    done = call(tmp_path, "audit", "other:1", *arguments)
    assert done.returncode == 1
    assert "not an entry of the ledger of other" in done.stderr
