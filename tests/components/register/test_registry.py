import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.register.registry import Pin, Registry
from hardcase.config import RegisterConfig
from hardcase.data.digest import path_digest
from hardcase.errors import HardcaseError, InputError

NAME = RegisterConfig().name


def test_nothing_registered_pins_nothing_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom components.register.registry import Registry\n"
        f"pin = Registry('sqlite:///{tmp_path}/mlflow.db', '{tmp_path}/store').pin('m', 'f')\n"
        "assert (pin.champion, pin.reference) == ('', '')\n"
        "assert not {'mlflow', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(tmp_path.iterdir()) == []


def test_first_run_done_again_pins_the_same(house: Any, evaluated: Any) -> None:
    assert house.registry.pin(NAME, "a") == Pin()
    house.launch("a", evaluated())
    assert house.registry.pin(NAME, "a") == Pin()


def test_next_run_is_measured_against_the_champion_and_pins_the_same_ever_after(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated(0.7))
    pin = house.registry.pin(NAME, "b")
    assert pin == Pin("1", house.state()[1][1]["evaluation"])
    assert house.launch("b", evaluated(0.8))["alias"] == "champion"
    assert house.registry.pin(NAME, "b") == pin
    assert house.registry.pin(NAME, "c") == Pin("2", house.state()[1][2]["evaluation"])


def test_held_run_done_again_pins_the_same_until_the_champion_changes(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated(0.7))
    pin = house.registry.pin(NAME, "b")
    assert house.launch("b", evaluated(0.5))["alias"] == "challenger"
    assert house.registry.pin(NAME, "b") == pin
    house.launch("c", evaluated(0.8))
    assert house.registry.pin(NAME, "b") == Pin("3", house.state()[1][3]["evaluation"])


def test_without_a_champion_the_newest_other_version_is_the_reference(house: Any, evaluated: Any) -> None:
    for fingerprint, rows in (("a", 40), ("b", 44)):
        assert house.launch(fingerprint, evaluated(rows=rows))["verdict"] == "held"
    tags = house.state()[1]
    assert house.registry.pin(NAME, "c") == Pin("", tags[2]["evaluation"])
    assert house.registry.pin(NAME, "b") == Pin("", tags[1]["evaluation"])
    assert house.registry.pin(NAME, "a") == Pin()


def test_model_comes_back_whole_by_alias_and_by_version(house: Any, evaluated: Any, tmp_path: Path) -> None:
    digest = house.launch("a", evaluated())["digest"]
    for number, spec in enumerate((f"{NAME}@champion", f"{NAME}:1")):
        house.registry.fetch_model(spec, tmp_path / f"model{number}")
        assert path_digest(tmp_path / f"model{number}") == digest


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("other@champion", NAME),
        (f"{NAME}@challenger", "@champion (:1)"),
        (f"{NAME}:7", "versions :1"),
        (f"{NAME}:0", "versions :1"),
        (NAME, "NAME@ALIAS"),
        ("../../etc@champion", "NAME@ALIAS"),
        (f"{NAME}' OR name != '@champion", "NAME@ALIAS"),
        (f"{NAME}@champion\n", "NAME@ALIAS"),
    ],
)
def test_unknown_model_is_refused_naming_what_exists(
    house: Any, evaluated: Any, tmp_path: Path, spec: str, hint: str
) -> None:
    house.launch("a", evaluated())
    with pytest.raises(InputError) as refusal:
        house.registry.fetch_model(spec, tmp_path / "model")
    assert hint in str(refusal.value)
    assert not (tmp_path / "model").exists()


def test_fetching_before_any_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hardcase run"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path)).fetch_model("m@champion", tmp_path / "model")


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_store_gives_no_model(house: Any, evaluated: Any, tmp_path: Path, damage: str) -> None:
    house.launch("a", evaluated())
    weights = path_digest(house.root / "run1" / "model" / "model.safetensors")
    stored = house.root / "store" / "objects" / weights[:2] / weights
    if damage == "altered":
        stored.write_bytes(stored.read_bytes() + b" ")
    else:
        stored.unlink()
    with pytest.raises(HardcaseError, match=f"{weights} (was altered|is missing)"):
        house.registry.fetch_model(f"{NAME}@champion", tmp_path / "model")
    assert list(tmp_path.glob("*model*")) == []


def test_what_was_registered_is_checked_and_registering_again_mends_it(house: Any, evaluated: Any) -> None:
    registered = house.launch("a", evaluated())
    house.launch("b", evaluated(0.9))
    house.registry.check(registered)
    for name in ("model/model.safetensors", "evaluation.parquet"):
        digest = path_digest(house.root / "run1" / name)
        (house.root / "store" / "objects" / digest[:2] / digest).write_bytes(b"other")
        with pytest.raises(HardcaseError, match=f"{digest} was altered"):
            house.registry.check(registered)
        house.launch("a", evaluated(), pin=Pin())
        house.registry.check(registered)
    with pytest.raises(HardcaseError, match=r"not in .* as it was"):
        house.registry.check({**registered, "version": 3})
    with pytest.raises(HardcaseError, match=r"not in .* as it was"):
        house.registry.check({**registered, "digest": "0"})
    (house.root / "mlflow.db").unlink()
    with pytest.raises(HardcaseError, match=r"not in .* as it was"):
        house.registry.check(registered)


def test_version_of_another_tool_is_refused(house: Any, tmp_path: Path) -> None:
    client = house.registry._client
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source="file:///elsewhere", tags={"digest": "../../secret"})
    with pytest.raises(InputError, match="not registered by hardcase"):
        house.registry.fetch_model(f"{NAME}:1", tmp_path / "model")
    client.set_registered_model_alias(NAME, "champion", "1")
    assert house.registry.pin(NAME, "a") == Pin("1", "")
    with pytest.raises(HardcaseError, match="carries no evaluation"):
        house.registry.evaluation(NAME, "1")


def test_lost_evaluation_of_the_champion_is_named(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated())
    digest = house.state()[1][1]["evaluation"]
    (house.root / "store" / "objects" / digest[:2] / digest).unlink()
    with pytest.raises(HardcaseError, match=f"champion {NAME}:1: its evaluation is lost.*{digest}"):
        house.launch("b", evaluated())
    with pytest.raises(HardcaseError, match=f"champion {NAME}:5 is not in"):
        house.launch("b", evaluated(), pin=Pin("5"))


def test_database_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("hello")
    with pytest.raises(HardcaseError, match="not an SQLite database"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path)).pin("m", "f")


@pytest.mark.parametrize("uri", ["http://localhost:5000", "sqlite:///relative.db", "./mlruns"])
def test_other_kinds_of_registry_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="SQLite"):
        Registry(uri, "/store")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a'b", "a@b", "a:1", "a\n"])
def test_names_that_could_mean_a_path_or_a_query_are_refused(house: Any, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        RegisterConfig(name=name)
    with pytest.raises(InputError, match=r"register\.name"):
        house.registry.pin(name, "f")
