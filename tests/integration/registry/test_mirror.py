"""MLflow shows what the ledger says, in a database and by a server, and nothing is lost that others put there."""

from pathlib import Path
from typing import Any

import pytest

from hardcase.config import RegisterConfig
from hardcase.errors import HardcaseError, InputError
from hardcase.registry.champion import roll_back
from hardcase.registry.mirror import Mirror, UnshownError
from tests.integration.registry.conftest import House
from tests.support.evaluations import evaluated

NAME = RegisterConfig().name


@pytest.fixture(name="house", params=["database", "server"])
def _house(house: House, request: pytest.FixtureRequest) -> House:
    if request.param == "server":
        house.server = request.getfixturevalue("server").uri
    return house


def versions(mirror: Mirror, name: str) -> dict[int, Any]:
    return {number: tags for number, (_, tags) in mirror._look(name).versions.items()}


def test_alias_moved_by_hand_is_told_and_set_right_by_the_next_registration(house: House) -> None:
    house.launch("a", evaluated(0.7))
    house.launch("b", evaluated(0.8))
    house.mirror._client.set_registered_model_alias(NAME, "champion", "1")
    told = "alias champion was moved outside the gate: it names version 1 in MLflow, by the ledger version 2"
    assert house.audited() == [told]
    house.launch("c", evaluated(0.5))
    assert house.state()[0] == {"champion": 2, "challenger": 3}


def test_alias_removed_by_hand_is_told(house: House) -> None:
    house.launch("a", evaluated())
    house.mirror._client.delete_registered_model_alias(NAME, "champion")
    assert "it names nothing in MLflow" in house.audited()[0]


def test_tag_changed_by_hand_is_told_and_one_of_the_users_own_is_not(house: House) -> None:
    house.launch("a", evaluated())
    house.mirror._client.set_model_version_tag(NAME, "1", "reviewed", "yes")
    assert house.audited() == []
    house.mirror._client.set_model_version_tag(NAME, "1", "digest", "0" * 64)
    assert house.audited() == ["version 1 in MLflow is not the ledger's"]


def test_versions_of_others_under_this_name_are_kept_under_another(house: House) -> None:
    client = house.mirror._client
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source="s3://elsewhere/model", tags={"digest": "theirs"})
    assert house.launch("a", evaluated())["version"] == 1
    assert versions(house.mirror, f"{NAME}.1") == {1: {"digest": "theirs"}}
    assert house.audited() == []


def test_lost_database_is_written_anew_from_the_store(house: House) -> None:
    for fingerprint, exact in (("a", 0.7), ("b", 0.8), ("c", 0.5)):
        house.launch(fingerprint, evaluated(exact))
    roll_back(house.store, house.keys, NAME, "tester", "b is odd", lambda version: None)
    house.mirror.show(lambda: house.ledger, house.store.uri)
    before = house.state()
    moved = Mirror(f"sqlite:///{house.root / 'anew' / 'mlflow.db'}")
    moved.show(lambda: house.ledger, house.store.uri)
    assert (moved._look(NAME).aliases, versions(moved, NAME)) == before
    assert before[0] == {"champion": 1, "challenger": 3}


def test_ledger_whose_end_was_cut_off_is_told_by_mlflow(house: House) -> None:
    house.launch("a", evaluated(0.7))
    house.launch("b", evaluated(0.8))
    (house.root / "store" / "models" / NAME / "ledger" / "000002.dsse.json").unlink()
    assert any("version 2 in MLflow is not the ledger's" in problem for problem in house.audited(1))


def test_database_that_is_none_is_refused_at_once(house: House, tmp_path: Path) -> None:
    (tmp_path / "other.db").write_text("hello")
    with pytest.raises(HardcaseError, match="not an SQLite database"):
        Mirror(f"sqlite:///{tmp_path}/other.db").show(lambda: house.ledger, "s")


def test_database_that_cannot_be_made_is_told_and_the_ledger_stands(house: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "mlflow.db", tmp_path / "folder"):
        with pytest.raises(UnshownError, match="the ledger is complete without it"):
            Mirror(f"sqlite:///{path}").show(lambda: house.ledger, "s")


@pytest.mark.parametrize("uri", ["databricks", "sqlite:///relative.db", "./mlruns"])
def test_other_kinds_of_registry_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="name sqlite:////absolute/path, http://… or https://…"):
        Mirror(uri)


def test_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="MLFLOW_TRACKING_TOKEN") as refusal:
        Mirror("https://me:hunter2@mlflow.example.com")
    assert "hunter2" not in str(refusal.value)
