"""Where a machine's state lies, and when a folder counts as changed."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hardcase.cli.main import app
from hardcase.data.listing import source_digest
from hardcase.database import database_path
from hardcase.errors import InputError
from hardcase.registry.ledger import Ledger
from hardcase.registry.mirror import Mirror
from hardcase.runners.home import Home


def test_source_digest_changes_with_a_file_and_not_with_the_home_inside_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    home = tmp_path / ".hardcase"
    before = source_digest(str(tmp_path), home)
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"x")
    assert source_digest(str(tmp_path), home) == before
    (tmp_path / "a.jpg").write_bytes(b"ab")
    assert source_digest(str(tmp_path), home) != before


def test_manifest_named_directly_counts_with_its_folder(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}")
    (tmp_path / "a.jpg").write_bytes(b"a")
    before = source_digest(str(tmp_path / "manifest.jsonl"), tmp_path / ".hardcase")
    (tmp_path / "a.jpg").write_bytes(b"ab")
    assert source_digest(str(tmp_path / "manifest.jsonl"), tmp_path / ".hardcase") != before


def test_generated_source_needs_no_digest(tmp_path):
    assert source_digest("procedural://?samples=8&seed=0", tmp_path) == ""


def test_latest_points_to_the_newest_run_also_after_a_move(tmp_path):
    home = Home(tmp_path / "home")
    home.new_run("a" * 64)
    newest = home.new_run("b" * 64)
    assert home.run_folder("latest") == newest
    (tmp_path / "home").rename(tmp_path / "moved")
    assert Home(tmp_path / "moved").run_folder("latest").name == newest.name


def test_unknown_run_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="yesterday"):
        Home(tmp_path).run_folder("yesterday")


def test_second_run_waits_for_the_first(tmp_path):
    code = (
        "from pathlib import Path; from hardcase.runners.home import Home\n"
        f"with Home(Path({str(tmp_path)!r})).locked(): print('in')"
    )
    with Home(tmp_path).locked():
        second = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    assert second.communicate(timeout=30)[0] == "in\n"


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x1b[2Jb", os.fsdecode(b"a\xffb")])
@pytest.mark.parametrize("variable", ["HARDCASE_HOME", "HARDCASE_STORE"])
def test_a_path_that_no_line_can_show_is_refused_before_anything_is_created(tmp_path, monkeypatch, variable, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, str(tmp_path / name))
    done = CliRunner().invoke(app, ["run", "--profile", "smoke"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "not printable" in line
    assert line.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["100%41", "a?b", "a#b", "a:b", "a b", "é", "{{$.x}}", "a'\"$\\b"])
def test_mlflow_opens_the_database_of_a_home_with_any_name_and_makes_no_other_folder(tmp_path, name):
    home = Home(tmp_path / name)
    assert database_path(home.tracking_uri) == home.root / "mlflow.db"
    mirror = Mirror(home.tracking_uri)
    mirror._make_database()
    assert mirror.find_differences(Ledger("none", [])) == []
    assert (home.root / "mlflow.db").read_bytes().startswith(b"SQLite format 3")
    assert [path.name for path in tmp_path.iterdir()] == [name]
