"""`hardcase clean`: leftovers go, and nothing that a run uses or an audit names."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from hardcase.lifetime import hold_lock
from hardcase.runners.home import Home

RELEASED = Path(__file__).parents[2] / "compat" / "2"
OLD = time.time() - 30 * 86_400
LEFTOVERS = [
    "home/scratch/sft-0123456789abcdef/warmup/checkpoint-3/model.safetensors",
    "home/runs/20260101T000000Z-00000000/.summary.json.draft",
    "home/store/notes/20260101T000000Z-00000000/sft.1.json",
    "home/store/notes/20251201T000000Z-ended/sft.2.json",
    "home/store/objects/ab/" + "ab" * 32 + "#1",
    "home/.mlflow.db.draft",
    "home/.mlflow.db.draft-journal",
    "home/keys/.tmpabc",
    "home/cache/.kfp_cache_x.tmp",
    "home/torchinductor/kernel.py",
    "cache/.tmpabc",
    "temporary/hardcase.abc/ephemeral_component.py",
]
KEPT = [
    "home/runs/20260101T000000Z-00000000/artifacts/pipeline/evaluate/metrics",
    "home/runs/20260101T000000Z-00000000/logs/sft.log",
    "home/runs/20260101T000000Z-00000000/metrics/sft/events",
    "home/store/runs/20251201T000000Z-ended.json",
    "home/store/notes/20251201T000000Z-of-another-home/sft.1.json",
    "home/.mlflow.db.lock",
    "home/cache/0123.json",
    "cache/.lock",
    "cache/" + "cd" * 32,
    "temporary/another/file",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with registered models, an old leftover of each kind, and what is like one."""
    with tarfile.open(RELEASED / "store.tar.gz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    shutil.rmtree(tmp_path / "home" / "store" / "notes")
    for name in [*LEFTOVERS, *KEPT]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (tmp_path / "home" / "latest").symlink_to("runs/20260101T000000Z-00000000")
    for path in tmp_path.rglob("*"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    monkeypatch.setenv("HARDCASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARDCASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def clean(*options: str) -> Result:
    return CliRunner().invoke(app, ["clean", *options])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_leftovers_are_listed_first_and_then_removed_and_models_stay(folder):
    before = files(folder)
    listed = json.loads(clean("--dry-run", "--json").stdout)
    assert files(folder) == before
    removed = json.loads(clean("--json").stdout)
    assert (listed["removed"], removed["removed"]) == (False, True)
    assert listed["leftovers"] == removed["leftovers"]
    assert before - files(folder) == set(LEFTOVERS)
    assert all(leftover["bytes"] > 0 for leftover in removed["leftovers"])
    audit = CliRunner().invoke(app, ["audit", "image-screener", "--key", str(RELEASED / "signing.pub")])
    assert audit.exit_code == 0, audit.output
    assert clean().stdout.splitlines() == ["0 leftovers, 0.0 MB; all were removed"]


def test_what_is_young_stays_unless_it_is_asked_for(folder):
    step = folder / LEFTOVERS[0]
    os.utime(step)
    draft = folder / "home/store/objects/ab/new#1"
    draft.touch()
    clean()
    assert step.exists()
    clean("--older-than", "0")
    assert not step.exists()
    assert draft.exists(), "another home may be writing it"


def test_what_a_process_holds_stays(folder):
    step = folder / LEFTOVERS[0]
    temporary = folder / "temporary" / "hardcase.abc"
    with hold_lock(step.parents[2]), hold_lock(temporary):
        clean("--older-than", "0")
    assert step.exists()
    assert temporary.exists()


def test_a_run_that_works_in_the_home_is_waited_for(folder):
    command = [sys.executable, "-P", "-m", "hardcase", "clean", "--older-than", "0"]
    with Home(folder / "home").locked():
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "waiting for it to end" in waiting.stderr.readline()
        assert (folder / LEFTOVERS[0]).exists()
        listed = {leftover["path"] for leftover in json.loads(clean("--dry-run", "--json").stdout)["leftovers"]}
        assert listed
        assert not [path for path in listed if "20260101T000000Z" in path], "that run works"
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert not (folder / LEFTOVERS[0]).exists()


def test_a_link_is_not_followed(folder):
    target = folder / "elsewhere"
    target.mkdir()
    (target / "file").touch()
    os.utime(target, (OLD, OLD))
    (folder / "home" / "scratch" / "linked").symlink_to(target)
    clean("--older-than", "0")
    assert (target / "file").exists()


@pytest.mark.parametrize("command", ["clean", "clean --dry-run", "runs", "report", "store gc"])
def test_a_command_in_the_wrong_folder_names_where_it_looked_and_creates_nothing(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARDCASE_HOME", raising=False)
    done = CliRunner().invoke(app, command.split())
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/.hardcase" in line
    assert list(tmp_path.iterdir()) == []
