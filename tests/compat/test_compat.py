"""Stores of released formats stay readable: README.md beside this file says how they were made."""

import json
import os
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest

from hardcase.audit.examine import examine
from hardcase.provenance.signing import Keyring, make_key, open_keyring, read_public_keys
from hardcase.registry.ledger import Move, append, fetch_model, read_ledger
from hardcase.registry.retention import list_unreferenced
from hardcase.registry.runs import list_runs
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, object_name, open_store

RELEASED = sorted(path.parent for path in Path(__file__).parent.glob("*/store.tar.gz"))
MODELS = {"image-screener": "promoted", "strict-screener": "rejected"}


@pytest.fixture(params=RELEASED, ids=lambda folder: f"format {folder.name}")
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "signing.pub").write_bytes((request.param / "signing.pub").read_bytes())
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(str(folder / "store"), cached=False)


@pytest.fixture
def keys(folder: Path) -> Keyring:
    return Keyring(read_public_keys([folder / "signing.pub"]))


def problems(store: Store, keys: Keyring, name: str) -> list[str]:
    return [finding.problem for finding in examine(store, name, keys).tree.broken]


def test_format_1_is_there_and_no_private_key_is() -> None:
    assert RELEASED[0].name == "1"
    for path in RELEASED:
        with tarfile.open(path / "store.tar.gz") as archive:
            assert not [name for name in archive.getnames() if name.endswith(".pem")]


def test_models_of_a_released_format_are_found_intact(store: Store, keys: Keyring) -> None:
    for name, verdict in MODELS.items():
        audit = examine(store, f"{name}:1", keys)
        assert [finding.problem for finding in audit.tree.broken] == []
        assert audit.version is not None
        assert audit.version.verdict == verdict
        assert {"ingest", "sft", "mine", "grpo", "answer", "evaluate", "drift"} <= set(audit.links)


def test_model_of_a_released_format_is_fetched(store: Store, keys: Keyring, tmp_path: Path) -> None:
    version = read_ledger(store, "image-screener", keys).champion
    fetch_model(store, keys, "image-screener", tmp_path / "model")
    assert version is not None
    assert path_digest(tmp_path / "model") == version.digest
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_runs_of_a_released_format_are_listed_in_todays_words(store: Store) -> None:
    second, first = list_runs(store)
    assert (first["status"], second["status"]) == ("succeeded", "rejected")
    for run, (name, verdict) in zip((first, second), MODELS.items(), strict=True):
        assert set(run["scores"]) == {"chance", "sft", "final"}
        assert (run["model"]["name"], run["gate"]["verdict"]) == (name, verdict)


def test_objects_of_a_released_format_are_all_referenced(store: Store, keys: Keyring) -> None:
    lonely = store.put_object(b"left by a run that was interrupted")
    unreferenced = list_unreferenced(store, keys, timedelta(0))
    assert [entry.name for entry in unreferenced] == [object_name(lonely)]


def test_one_flipped_bit_in_a_released_format_is_found(folder: Path, store: Store, keys: Keyring) -> None:
    audit = examine(store, "image-screener", keys)
    version = audit.version
    assert version is not None and audit.provenance is not None
    records = [resource.digest for resource in audit.provenance.byproducts.values() if "record" in resource.name]
    names = ["models/image-screener/ledger/000001.dsse.json", "models/image-screener/1/README.md"]
    names += map(object_name, (version.statement, version.digest, version.gate, version.evaluation, *records[:1]))
    for name in names:
        path = folder / "store" / name
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        assert any(name in problem for problem in problems(store, keys, "image-screener")), name
        path.write_bytes(data)
    assert problems(store, keys, "image-screener") == []


def test_entry_of_a_newer_hardcase_cannot_be_judged_and_one_more_key_is_no_damage(folder: Path, store: Store) -> None:
    make_key(folder / "keys")
    ours = open_keyring(str(folder / "keys" / "signing.pem"), [folder / "signing.pub"])
    ledger = read_ledger(store, "image-screener", ours)
    assert ledger.champion is not None
    version = ledger.champion.model_copy(update={"number": 2, "region": "north"})
    move = Move(alias="champion", version=2, who="w", when="t", why="y", made=version, ticket="7")
    assert append(store, ours, ledger, move)
    audit = examine(store, "image-screener:1", ours)
    assert [finding.problem for finding in audit.tree.broken] == []
    assert any("keys that this hardcase does not know: ticket, region" in f.what for f in audit.tree.walk())

    entry = folder / "store" / "models" / "image-screener" / "ledger" / "000002.dsse.json"
    statement = ours.open_envelope(entry.read_bytes(), "it")
    statement["predicateType"] = "urn:hardcase:ledger:v99"
    entry.write_bytes(ours.sign(statement))
    command = [sys.executable, "-m", "hardcase", "audit", "image-screener", "--store", str(folder / "store"), "--json"]
    command += ["--key", str(folder / "signing.pub"), "--key", str(folder / "keys" / "signing.pub")]
    environment = {**os.environ, "HARDCASE_HOME": str(folder / "home")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "error: cannot be judged:" in result.stderr
    assert "000002.dsse.json: written by a newer hardcase (format 99," in result.stderr
    assert "bring back the original" not in result.stderr
    found = json.loads(result.stdout)
    assert (found["clean"], found["broken"], len(found["newer"])) == (False, [], 1)
