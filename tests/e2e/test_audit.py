"""Two runs of `profiles/smoke.yaml`, and what an auditor, an operator and an attacker do with what they registered."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from hardcase.audit.examine import examine
from hardcase.provenance.attestations import open_attestation
from hardcase.provenance.signing import Keyring, make_key, open_keyring
from hardcase.registry.ledger import read_ledger
from hardcase.store.digest import bytes_digest
from hardcase.store.store import object_name, open_store
from tests.integration.registry.conftest import Server
from tests.support.machine import NO_FLOOR, Machine

NAME = "image-screener"
BREVITY = (
    "def brevity(completions, **columns):\n    return [-len(turns[0]['content']) / 999 for turns in completions]\n"
)


@pytest.fixture(scope="module")
def runs(machine: Machine) -> list[dict[str, Any]]:
    """Version 1, and version 2 by another learning rate and a reward function of the user, as good as the first."""
    first = machine.run(*NO_FLOOR)
    (machine.home.parent / "brevity.py").write_text(BREVITY)
    more = ("--set", "grpo.rewards={brevity.py:brevity: 0.1}")
    return [first, machine.run("--set", "sft.learning_rate=0.002", *more, *NO_FLOOR)]


@pytest.fixture
def copy(machine: Machine, runs: list[dict[str, Any]], tmp_path: Path) -> Machine:
    """A home with store, keys and MLflow's database of its own, to be damaged."""
    home = tmp_path / "home"
    for name in ("store", "keys"):
        shutil.copytree(machine.home / name, home / name)
    shutil.copyfile(machine.home / "mlflow.db", home / "mlflow.db")
    return Machine(home)


def keys_of(machine: Machine) -> Keyring:
    return open_keyring(str(machine.home / "keys" / "signing.pem"), [])


def problems(store: Path, keys: Keyring, spec: str = f"{NAME}:1") -> list[str]:
    return [finding.problem for finding in examine(open_store(str(store)), spec, keys).tree.broken]


def depended_on(store: Path, keys: Keyring, spec: str) -> Iterator[Path]:
    """Every file in the store that an audit names."""
    places = {finding.place for finding in examine(open_store(str(store)), spec, keys).tree.walk()}
    return (store / place for place in sorted(places) if (store / place).is_file())


def test_whole_model_is_audited_as_a_tree_as_json_and_as_a_page(machine: Machine, runs: Any, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    done = machine.call("audit", NAME, "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "✗" not in done.stdout
    assert f"{NAME}:2 (champion)" in done.stdout
    assert "whole:" in done.stdout
    assert "<svg" in page.read_text()
    done = machine.call("audit", f"{NAME}:1", "--json")
    told = json.loads(done.stdout)
    assert (told["clean"], told["version"], told["digest"]) == (True, 1, runs[0]["model"]["digest"])
    assert done.returncode == 0


def test_the_audit_names_the_reward_function_that_trained_by_sha256(machine: Machine, runs: Any) -> None:
    tree = examine(open_store(str(machine.home / "store")), f"{NAME}:2", keys_of(machine)).tree
    (files,) = (part for part in tree.walk() if part.what == "reward_files")
    (file,) = files.parts
    assert (file.what, file.place) == ("brevity.py", object_name(bytes_digest(BREVITY.encode())))


def test_everything_in_the_store_is_accounted_for(machine: Machine, runs: Any) -> None:
    store, keys = machine.home / "store", keys_of(machine)
    named = {path for number in (1, 2) for path in depended_on(store, keys, f"{NAME}:{number}")}
    for record in map(json.loads, (path.read_text() for path in (store / "runs").iterdir())):
        link = open_attestation(open_store(str(store)).get_object(record["attestation"]), keys, "register's")
        named |= {
            store / object_name(each) for each in (record["report"], record["attestation"], *link.products.values())
        }
    there = {path for path in store.rglob("*") if path.is_file()}
    public = {path for path in there if path.parent.name == "keys"}
    records = {path for folder in ("runs", "notes") for path in (store / folder).rglob("*")}
    assert there - named - public - records == set()


def test_bit_flipped_in_any_object_is_named(copy: Machine) -> None:
    store, keys = copy.home / "store", keys_of(copy)
    files = [*depended_on(store, keys, f"{NAME}:2"), *(store / "keys").iterdir()]
    assert len(files) > 100
    for path in files:
        data = path.read_bytes()
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if data else b"1")
        name = path.relative_to(store).as_posix()
        assert any(name in problem for problem in problems(store, keys, f"{NAME}:2")), name
        path.write_bytes(data)
    assert problems(store, keys, f"{NAME}:2") == []


@pytest.mark.parametrize("damage", ["removed", "cut short", "swapped"])
def test_object_removed_cut_short_or_swapped_is_named(copy: Machine, damage: str) -> None:
    store, keys = copy.home / "store", keys_of(copy)
    files = list(depended_on(store, keys, f"{NAME}:1"))
    for path, other in zip(files[::9], files[4::9], strict=False):
        data = path.read_bytes()
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes((data[:-1] or b"longer") if damage == "cut short" else other.read_bytes())
        name = path.relative_to(store).as_posix()
        assert any(name in problem for problem in problems(store, keys)), name
        path.write_bytes(data)


def test_first_broken_link_is_named_on_one_line_with_exit_1(copy: Machine) -> None:
    ledger = read_ledger(open_store(str(copy.home / "store")), NAME, keys_of(copy))
    digest = ledger.versions[2].gate
    (copy.home / "store" / "objects" / digest[:2] / digest).write_bytes(b"promoted")
    done = copy.call("audit", NAME)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: broken:")
    assert f"objects/{digest[:2]}/{digest}" in done.stderr
    done = copy.call("rollback", NAME, "--why", "2 has lost its record")
    assert done.returncode == 0, done.stderr
    assert copy.call("audit", NAME).returncode == 0


def test_old_entry_in_the_place_of_a_new_one_is_caught(copy: Machine) -> None:
    store, keys = copy.home / "store", keys_of(copy)
    first, second = sorted((store / "models" / NAME / "ledger").iterdir())
    second.write_bytes(first.read_bytes())
    (problem,) = problems(store, keys)
    assert "000002.dsse.json: an entry of another place" in problem
    second.unlink()
    assert any(f"models/{NAME}/2: the ledger has no such version" in problem for problem in problems(store, keys))


def test_entry_signed_by_another_key_is_caught_wherever_that_key_is_put(copy: Machine, tmp_path: Path) -> None:
    store = copy.home / "store"
    make_key(tmp_path / "mallory")
    mallory = open_keyring(str(tmp_path / "mallory" / "signing.pem"), [])
    entry = store / "models" / NAME / "ledger" / "000002.dsse.json"
    statement = keys_of(copy).open_envelope(entry.read_bytes(), "it")
    statement["predicate"]["why"] = "bribed"
    entry.write_bytes(mallory.sign(statement))
    mallory.publish(open_store(str(store)))
    done = copy.call("audit", NAME)
    assert done.returncode == 1
    assert "000002.dsse.json: no good signature" in done.stderr


def test_statement_of_another_model_is_caught(copy: Machine) -> None:
    """Signed with the right key, by a ledger that names version 1's statement for version 2."""
    store, keys = open_store(str(copy.home / "store")), keys_of(copy)
    ledger = read_ledger(store, NAME, keys)
    entry = copy.home / "store" / "models" / NAME / "ledger" / "000002.dsse.json"
    statement = keys.open_envelope(entry.read_bytes(), "it")
    statement["predicate"]["made"]["statement"] = ledger.versions[1].statement
    entry.write_bytes(keys.sign(statement))
    found = problems(copy.home / "store", keys, f"{NAME}:2")
    assert any("it is of the model" in problem for problem in found)
    done = copy.call("screen", "--model", f"{NAME}:2", *_pictures(copy.home))
    assert done.returncode == 1
    assert "of another model" in done.stderr


def _pictures(folder: Path) -> list[str]:
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.linear_gradient("L").rotate(90 * number).save(path)
    return [str(path) for path in paths]


def test_nothing_is_screened_with_a_model_whose_record_was_touched(copy: Machine) -> None:
    pictures = _pictures(copy.home)
    assert "every answer is invalid" in copy.call("screen", "--model", NAME, *pictures).stderr
    entry = copy.home / "store" / "models" / NAME / "ledger" / "000001.dsse.json"
    entry.write_bytes(entry.read_bytes().replace(b'"sig":"', b'"sig":"AAAA', 1))
    done = copy.call("screen", "--model", NAME, *pictures)
    assert done.returncode == 1
    assert "000001.dsse.json: no good signature" in done.stderr


def test_auditor_who_has_nothing_but_the_store(copy: Machine, tmp_path: Path) -> None:
    elsewhere = Machine(tmp_path / "elsewhere" / "home")
    elsewhere.home.parent.mkdir()
    arguments = ("audit", NAME, "--store", str(copy.home / "store"))
    done = elsewhere.call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "no key of this machine's own" in done.stderr
    done = elsewhere.call(*arguments, "--key", str(copy.home / "keys" / "signing.pub"))
    assert (done.returncode, done.stderr) == (0, "")
    make_key(elsewhere.home / "keys")
    assert elsewhere.call(*arguments).returncode == 1
    done = elsewhere.call(*arguments, "--key", str(elsewhere.home / "keys" / "signing.pub"))
    assert done.returncode == 1
    assert "no good signature" in done.stderr


def test_lost_database_is_no_loss(copy: Machine) -> None:
    (copy.home / "mlflow.db").unlink()
    assert copy.call("audit", NAME).returncode == 0
    assert not (copy.home / "mlflow.db").exists()
    assert copy.call("audit", NAME, "--rebuild").returncode == 0
    assert (copy.home / "mlflow.db").is_file()


def test_server_that_is_down_holds_nothing_up_and_is_told_all_once_it_answers(
    copy: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy.home / "mlflow.db").rename(tmp_path / "mlflow.db")
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = copy.call("rollback", NAME, "--why", "it flags every shadow")
    assert done.returncode == 0, done.stderr
    assert f"{NAME}@champion is :1, but MLflow does not show it: registry {server.uri}" in done.stderr
    done = copy.call("audit", NAME)
    assert done.returncode == 0, done.stderr
    assert "what MLflow shows was not compared" in done.stderr
    done = copy.call("audit", NAME, "--rebuild")
    assert done.returncode == 1
    assert "the ledger is complete without it" in done.stderr
    try:
        server.start()
        done = copy.call("audit", NAME)
        assert done.returncode == 0, done.stderr
        assert f"shows 2 of 3 entries of {NAME}" in done.stderr
        done = copy.call("audit", NAME, "--rebuild")
        assert (done.returncode, done.stderr) == (0, "")
        shown = MlflowClient(server.uri, registry_uri=server.uri)
        assert int(shown.get_model_version_by_alias(NAME, "champion").version) == 1
        shown.set_registered_model_alias(NAME, "champion", "2")
        done = copy.call("audit", NAME)
        assert done.returncode == 1
        assert "alias champion was moved outside the gate: it names version 2 in MLflow" in done.stderr
    finally:
        server.stop()
    assert not (copy.home / "mlflow.db").exists()


def test_rollback_restores_the_exact_digest_of_the_champion_before(copy: Machine, runs: Any) -> None:
    digests = [run["model"]["digest"] for run in runs]
    done = copy.call("rollback", f"{NAME}@champion", "--why", "it flags every shadow", "--json")
    assert done.returncode == 0, done.stderr
    restored = {"name": NAME, "version": 1, "alias": "champion", "digest": digests[0]}
    assert json.loads(done.stdout) == {**restored, "moved": True}
    done = copy.call("audit", NAME)
    assert done.returncode == 0, done.stdout
    assert "it flags every shadow" in done.stdout
    done = copy.call("rollback", NAME)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}@champion is :1 already" in done.stdout
    assert len(list((copy.home / "store" / "models" / NAME / "ledger").iterdir())) == 3


def test_difference_of_two_versions(machine: Machine, runs: Any) -> None:
    done = machine.call("audit", NAME, "--diff", "1", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rate = found["config"]["sft.learning_rate"][0]
    assert found["config"] == {"sft.learning_rate": [rate, 0.002], "grpo.rewards.brevity.py:brevity": [None, 0.1]}
    assert found["facts"]["reward_files"][0] == "" != found["facts"]["reward_files"][1]
    assert found["facts"]["model"] == [run["model"]["digest"] for run in runs]
    nothing = {"added": [], "removed": [], "changed": []}
    assert (found["data"], found["code"], found["packages"]) == (nothing, nothing, {})
    done = machine.call("audit", NAME, "--diff", "1", "2")
    assert "sft.learning_rate" in done.stdout


def test_replay_of_the_champion_gives_the_same_bytes(machine: Machine, runs: Any) -> None:
    before = set((machine.home / "store").rglob("*"))
    done = machine.call("audit", NAME, "--replay", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["replay"]
    assert again["grpo.model"]["again"] == runs[1]["model"]["digest"]
    assert {name for name, pair in again.items() if pair["again"] != pair["recorded"]} == set()
    assert len(again) == 14
    assert not list(machine.home.glob("replay-*"))
    assert set((machine.home / "store").rglob("*")) == before, "a replay leaves nothing"
    ledger = read_ledger(open_store(str(machine.home / "store")), NAME, keys_of(machine))
    assert len(ledger.moves) == 2


def test_gc_lists_what_nobody_needs_and_nothing_else(copy: Machine) -> None:
    store = copy.home / "store"
    lonely = open_store(str(store)).put_object(b"left by a run that was killed")
    assert copy.call("ingest", "--source", "procedural://?samples=12&seed=5").returncode == 0

    def listed(*more: str) -> set[str]:
        done = copy.call("store", "gc", "--json", *more)
        assert done.returncode == 0, done.stderr
        return {each["name"] for each in json.loads(done.stdout)}

    assert listed() == set()  # all younger than a week
    before = {path for path in store.rglob("*") if path.is_file()}
    assert listed("--older-than", "0") == {f"objects/{lonely[:2]}/{lonely}"}
    for record in (store / "runs").iterdir():
        record.unlink()
    loose = listed("--older-than", "0")
    # And the snapshot of no model, a manifest and two shards; of two runs page, registration and its attestation.
    assert len(loose) == 1 + 3 + 2 * 3
    assert {path for path in store.rglob("*") if path.is_file()} == {
        path for path in before if path.parent.name != "runs"
    }
    for name in loose:
        (store / name).unlink()
    assert [problems(store, keys_of(copy), f"{NAME}:{number}") for number in (1, 2)] == [[], []]
    assert copy.call("store", "gc", "--older-than", "0").stdout.endswith(
        "0 unreferenced objects, 0.0 MB; none was removed\n"
    )


def test_gc_judges_nothing_where_a_ledger_was_touched(copy: Machine) -> None:
    (copy.home / "store" / "models" / NAME / "ledger" / "000001.dsse.json").write_bytes(b"{}")
    done = copy.call("store", "gc", "--dry-run", "--older-than", "0")
    assert (done.returncode, done.stdout) == (1, "")


def test_unknown_model_or_version_says_what_there_is(machine: Machine, runs: Any) -> None:
    for spec, said in (("other", NAME), (f"{NAME}:9", "versions :1, :2"), ("../x", "NAME@ALIAS")):
        done = machine.call("audit", spec)
        assert done.returncode == 2
        assert said in done.stderr
