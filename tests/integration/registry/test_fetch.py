"""`hardcase fetch`: the registered files or nothing, and nothing that was altered."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from hardcase.store.digest import path_digest
from hardcase.store.store import object_name
from tests.integration.registry.conftest import NAME, House
from tests.support.evaluations import evaluated


@pytest.fixture
def registered(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A home with two versions: :1 is champion, :2 challenger."""
    house.launch("a", evaluated(0.8))
    house.launch("b", evaluated(0.5))
    monkeypatch.setenv("HARDCASE_HOME", str(house.root))
    monkeypatch.delenv("HARDCASE_STORE", raising=False)
    return house


def fetch(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fetch", *map(str, arguments)])


@pytest.mark.parametrize(("spec", "number"), [(NAME, 1), (f"{NAME}@challenger", 2), (f"{NAME}:2", 2)])
def test_folder_is_the_registered_model(registered: House, tmp_path: Path, spec: str, number: int) -> None:
    version = registered.ledger.versions[number]
    done = fetch(spec, tmp_path / "new" / "model", "--json")
    assert done.exit_code == 0, done.output
    assert path_digest(tmp_path / "new" / "model") == version.digest
    assert json.loads(done.stdout)["model"] == f"{NAME}:{number}"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_one_flipped_bit_in_the_store_fetches_nothing(registered: House, tmp_path: Path) -> None:
    listing = json.loads(registered.store.get_object(registered.ledger.versions[1].digest))
    file = registered.root / "store" / object_name(listing["model.safetensors"])
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    done = fetch(NAME, tmp_path / "model")
    assert done.exit_code == 1
    assert "was altered" in done.output
    assert not (tmp_path / "model").exists()


def test_nothing_is_replaced(registered: House, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    for target in (tmp_path / "model", tmp_path / "model" / "mine"):
        done = fetch(NAME, target)
        assert (done.exit_code, "exists and is no empty folder" in done.output) == (2, True)
    assert (tmp_path / "model" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert fetch(NAME, tmp_path / "empty").exit_code == 0


def test_model_that_is_not_registered_is_named_in_one_line(registered: House, tmp_path: Path) -> None:
    done = fetch("other", tmp_path / "model")
    assert done.exit_code == 2
    assert "model 'other': not registered" in done.output
    assert not (tmp_path / "model").exists()
