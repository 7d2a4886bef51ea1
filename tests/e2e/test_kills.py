"""`hardcase ingest`, killed at random moments with its workers: nothing holds its home, and the next start goes on."""

import json
import time
from pathlib import Path

import pytest

from hardcase.data.scenes import write_source
from tests.support.killing import kill, leftovers, moments
from tests.support.machine import Machine


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def ingest(machine: Machine, source: Path) -> str:
    done = machine.call("ingest", "--source", str(source), "--json")
    assert done.returncode == 0, done.stderr
    snapshot: str = json.loads(done.stdout)["snapshot"]
    return snapshot


def test_killed_ingest_leaves_nothing_that_holds_its_home_and_ends_with_the_same_snapshot(
    tmp_path_factory: pytest.TempPathFactory, temporary: Path
) -> None:
    folder = tmp_path_factory.mktemp("kills")
    write_source(folder / "data", samples=1200, seed=5)
    other = Machine(folder / "reference" / "home")
    other.home.parent.mkdir()
    began = time.monotonic()
    expected, longest = ingest(other, folder / "data"), time.monotonic() - began
    machine, at_work = Machine(folder / "home"), 0
    for seconds in moments(longest):
        at_work += kill(machine, seconds, "ingest", "--source", str(folder / "data"))
        assert ingest(machine, folder / "data") == expected
        assert leftovers(machine, temporary) == []
    assert at_work > 0
