"""Fixtures of the tests that start processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile import HostileFolder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hostile_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every process start in a folder that holds Python files; in the end none of them was imported."""
    hostile = HostileFolder(tmp_path_factory.mktemp("hostile") / "data")
    monkeypatch.chdir(hostile.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # works of the tests themselves
    yield
    assert hostile.imported == []
