"""Register: the gate's verdict becomes a version, all that made it is kept, and it is done again to the same end."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import RegisterConfig
from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.statement import read_provenance
from hardcase.stats.gate import Decision
from hardcase.steps import register
from hardcase.store.digest import path_digest
from tests.integration.registry.conftest import House
from tests.support.evaluations import SCORES, evaluated

NAME = RegisterConfig().name
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.integration.registry.conftest", "mlflow.tracking", "hardcase.audit.examine"])
KILLS, AT_ONCE = 30, 16


def test_first_model_becomes_champion(house: House) -> None:
    found = house.launch("a", evaluated())
    model, table = house.root / "run1" / "model", house.root / "run1" / "evaluation"
    assert found == {
        "verdict": "promoted",
        "reasons": found["reasons"],
        "warnings": ["grpo: the final weights equal those of the SFT model; GRPO changed nothing"],
        "name": NAME,
        "version": 1,
        "alias": "champion",
        "digest": path_digest(model),
        "against": None,
        "differences": None,
    }
    aliases, tags = house.state()
    assert aliases == {"champion": 1}
    version = house.ledger.versions[1]
    assert tags[1] == {
        "digest": path_digest(model),
        "evaluation": path_digest(table),
        "fingerprint": "a",
        "pinned": "",
        "reference": "",
        "reference_evaluation": "",
        "verdict": "promoted",
        "reasons": json.dumps(found["reasons"]),
        "gate": version.gate,
        "statement": version.statement,
        "dossier": version.dossier,
        "run": "run1",
    }
    assert house.mirror._look(NAME).versions[1][0] == f"hardcase://{house.ledger.digests[0]}/{NAME}"
    (move,) = house.ledger.moves
    assert (move.who, move.why, move.alias) == ("tester", found["reasons"][0], "champion")
    assert house.audited() == []


def test_statement_names_all_that_made_the_model(house: House) -> None:
    house.launch("a", evaluated(0.7))
    house.launch("b", evaluated(0.8))
    version = house.ledger.versions[2]
    provenance = read_provenance(house.keys.open_envelope(house.store.get_object(version.statement), "it"), "it")
    run = house.root / "run2"
    made = {**provenance.dependencies, **provenance.byproducts}
    for name, file in (("snapshot", "snapshot"), ("mined", "mined"), ("sft_model", "sft"), ("drift", "drift")):
        assert made[name].digest == path_digest(run / file)
    assert provenance.subject == path_digest(run / "model") == version.digest
    assert set(provenance.dependencies) == {
        *("snapshot", "code", "git commit", "requirements.lock", "champion", "reference evaluation")
    }
    assert made["champion"].digest == house.ledger.versions[1].digest
    assert made["reference evaluation"].digest == house.ledger.versions[1].evaluation
    assert (provenance.run, provenance.parents) == ("run2", ())
    assert set(provenance.parameters["config"]) >= {"ingest", "sft", "grpo", "model", "register"}
    names = house.store.list_names(f"models/{NAME}/2")
    assert {Path(name).name for name in names} >= {"README.md", "provenance.dsse.json"}


def test_better_model_replaces_the_champion(house: House) -> None:
    house.launch("a", evaluated(0.7))
    found = house.launch("b", evaluated(0.8))
    assert (found["verdict"], found["version"], found["against"]) == ("promoted", 2, 1)
    assert found["differences"]["overall"]["low"] > 0
    aliases, tags = house.state()
    assert aliases == {"champion": 2}
    assert (tags[2]["reference"], tags[2]["reference_evaluation"]) == ("1", tags[1]["evaluation"])


def test_worse_model_is_kept_as_challenger_with_the_reasons(house: House) -> None:
    house.launch("a", evaluated(0.7))
    found = house.launch("b", evaluated(0.5))
    assert (found["verdict"], found["alias"], found["version"]) == ("rejected", "challenger", 2)
    aliases, tags = house.state()
    assert aliases == {"champion": 1, "challenger": 2}
    assert json.loads(tags[2]["reasons"]) == found["reasons"]
    assert "significantly worse" in found["reasons"][0]
    assert house.audited(2) == []


def test_model_that_the_gate_of_format_1_held_stays_a_clean_challenger(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gate record and MLflow's tags say `held` for ever; they agree with the ledger."""
    monkeypatch.setattr(register, "decide", lambda *_: Decision("held", ["worse"]))  # type: ignore[arg-type]
    house.launch("a", evaluated())
    house.mirror._client.set_model_version_tag(NAME, "1", "verdict", "held")
    assert json.loads(house.store.get_object(house.ledger.versions[1].gate))["verdict"] == "held"
    assert house.audited(1) == []
    assert house.ledger.versions[1].verdict == "rejected"


def test_scores_that_are_not_finite_never_reach_champion(house: House) -> None:
    found = house.launch("a", evaluated(), scores={**SCORES, "final": {**SCORES["final"], "overall": float("nan")}})
    assert found["reasons"] == ["scores: final.overall is nan, not finite"]
    assert house.state()[0] == {"challenger": 1}
    assert house.audited(1) == []


def test_same_run_again_changes_nothing(house: House) -> None:
    for fingerprint, exact in (("a", 0.7), ("b", 0.5), ("c", 0.8)):
        house.launch(fingerprint, evaluated(exact))
        first, state = house.written(), house.state()
        house.launch(fingerprint, evaluated(exact))
        assert house.written() == first
        assert house.state() == state


def test_old_model_judged_against_a_new_champion_is_a_new_version(house: House) -> None:
    house.launch("a", evaluated(0.7))
    house.launch("b", evaluated(0.8))
    found = house.launch("a", evaluated(0.7))
    assert (found["verdict"], found["version"], found["against"]) == ("rejected", 3, 2)
    assert house.state()[0] == {"champion": 2, "challenger": 3}


def test_champion_of_another_run_since_the_launch_is_the_one_to_beat(house: House) -> None:
    house.launch("a", evaluated(0.7))
    pin = house.ledger.pin("b")
    house.launch("c", evaluated(0.9))
    found = house.launch("b", evaluated(0.8), pin=pin)
    assert (found["verdict"], found["against"], found["version"]) == ("rejected", 2, 3)
    version = house.ledger.versions[3]
    assert (version.pinned, version.reference) == ("1", "2")
    assert house.launch("b", evaluated(0.8), pin=pin)["version"] == 3
    assert house.launch("b", evaluated(0.8))["version"] == 3
    assert house.audited(3) == []


def _killed(root: Path, fingerprint: str, exact: float) -> None:
    House(root).launch(fingerprint, evaluated(exact, rows=120))


def test_killed_at_random_moments_it_ends_as_one_version_complete(house: House) -> None:
    house.launch("a", evaluated(0.6, rows=120))
    _rehearsed(house, "first")  # starts the server that forks
    took = _rehearsed(house, "second")
    draw, unfinished = random.Random(0), 0
    for number in range(KILLS):
        place = House(house.root / f"killed{number}")
        _copied(house, place)
        process = FORK.Process(target=_killed, args=(place.root, "n", 0.9))
        process.start()
        time.sleep((number + draw.random()) / KILLS * took)
        process.kill()
        process.join()
        unfinished += not (place.root / "run1" / "register.json").exists()
        shutil.rmtree(place.root / "run1", ignore_errors=True)
        found = place.launch("n", evaluated(0.9, rows=120))
        assert (found["version"], found["verdict"]) == (2, "promoted")
        assert place.state()[0] == {"champion": 2}
        assert list(place.ledger.versions) == [1, 2]
        assert place.audited() == []
    assert unfinished >= KILLS // 3


def _rehearsed(house: House, name: str) -> float:
    """How long it takes when nobody kills it."""
    place = House(house.root / name)
    _copied(house, place)
    process = FORK.Process(target=_killed, args=(place.root, "n", 0.9))
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def _copied(house: House, place: House) -> None:
    place.root.mkdir()
    for name in ("store", "keys"):
        shutil.copytree(house.root / name, place.root / name)
    shutil.copyfile(house.root / "mlflow.db", place.root / "mlflow.db")


def test_sixteen_registrations_at_once_lose_no_version_and_make_one_champion(house: House) -> None:
    places = [house.root / f"at-once-{number}" for number in range(AT_ONCE)]
    for place in places:
        place.mkdir()
        for name in ("store", "keys", "mlflow.db"):
            (place / name).symlink_to(house.root / name)
    _ = house.keys, house.store
    processes = [
        FORK.Process(target=_killed, args=(place, f"n{number}", 0.5 + number / 40))
        for number, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * AT_ONCE
    found = [json.loads((place / "run1" / "register.json").read_text()) for place in places]
    assert sorted(each["version"] for each in found) == list(range(1, AT_ONCE + 1))
    ledger = house.ledger
    promoted = [each["version"] for each in found if each["verdict"] == "promoted"]
    assert ledger.champion is not None
    assert ledger.champion.number == max(promoted)
    for version in ledger.versions.values():  # each was judged against the champion of its moment
        before = [number for number in sorted(promoted) if number < version.number]
        assert version.reference == (str(before[-1]) if before else "")
    aliases, tags = house.state()
    assert aliases["champion"] == ledger.champion.number
    assert {number for number, written in tags.items() if written} == set(ledger.versions)
    assert [house.audited(number) for number in (1, 8, AT_ONCE)] == [[], [], []]


def test_first_run_of_all_is_quiet_light_and_leaves_nothing_behind(house: House, tmp_path: Path) -> None:
    fresh, cwd = tmp_path / "fresh", tmp_path / "elsewhere"
    cwd.mkdir()
    fresh.mkdir()
    # What a process killed amid MLflow's migration leaves.
    (fresh / ".mlflow.db.draft").write_bytes((house.root / "mlflow.db").read_bytes()[:8192])
    code = f"""
import sys
from pathlib import Path
from hardcase.steps.register import run
assert not {{"mlflow", "torch"}} & set(sys.modules)
from tests.integration.registry.conftest import House
from tests.support.evaluations import evaluated
House(Path("{fresh}")).launch("a", evaluated())
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    house.launch("a", evaluated())
    assert (fresh / "run1" / "register.json").read_bytes() == house.written()
    assert sorted(path.name for path in fresh.iterdir()) == [".mlflow.db.lock", "keys", "mlflow.db", "run1", "store"]
    assert list(cwd.iterdir()) == list(Path.cwd().iterdir()) == []


def test_our_own_log_survives_mlflow(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        house.launch("a", evaluated())
        logging.getLogger("components.register").info("still heard")
    heard = [record.message for record in caplog.records if record.name != "hardcase.progress"]
    assert heard == ["still heard"]


@pytest.mark.parametrize(("name", "text"), [("scores", "{"), ("drift", "[]"), ("evaluation", "PAR1")])
def test_file_of_another_format_is_the_users_error(house: House, name: str, text: str) -> None:
    with pytest.raises(InputError, match=name):
        house.launch("a", evaluated(), damage=lambda artifacts: artifacts[name].write_text(text))
    assert house.state() == ({}, {})
    assert not house.ledger.moves


def _without(step: str) -> Any:
    return lambda links: links.pop(step)


def _altered(step: str, **changes: Any) -> Any:
    def spoil(links: dict[str, Attestation]) -> None:
        link = links[step]
        parts = {field: {**getattr(link, field), **change} for field, change in changes.items()}
        links[step] = replace(link, **parts)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without("mine"), "grpo read mined [0-9a-f]{12}, which no step of the chain wrote"),
        (_without("sft"), "rollout read sft_model [0-9a-f]{12}, which no step of the chain wrote"),
        (_altered("grpo", materials={"sft_model": "0" * 64}), "grpo read sft_model 000000000000, which no step"),
        (_altered("evaluate", parameters={"code": "1" * 64}), "do not share one code"),
        (_altered("mine", parameters={"seed": 7}), "do not share one seed: 0, 7"),
        (_altered("drift", parameters={"reference": "2" * 64}), "drift compared with 222222222222"),
    ],
)
def test_model_that_cannot_be_accounted_for_is_not_registered(house: House, spoil: Any, said: str) -> None:
    with pytest.raises(HardcaseError, match=said) as refusal:
        house.launch("a", evaluated(), spoil=spoil)
    assert "nothing was registered" in str(refusal.value)
    assert not house.ledger.moves
    assert house.state() == ({}, {})


def test_lost_evaluation_of_the_champion_is_named(house: House) -> None:
    house.launch("a", evaluated())
    digest = house.ledger.versions[1].evaluation
    (house.root / "store" / "objects" / digest[:2] / digest).unlink()
    with pytest.raises(HardcaseError, match=f"champion {NAME}:1: its evaluation is lost.*{digest}.*hardcase rollback"):
        house.launch("b", evaluated(0.9))
    with pytest.raises(HardcaseError, match=f"champion {NAME}:5 is not in the ledger"):
        house.launch("b", evaluated(0.9), pin=("5", ""))


def test_registering_again_mends_what_was_lost(house: House) -> None:
    house.launch("a", evaluated())
    published = house.root / "store" / "models" / NAME / "1" / "README.md"
    for path in (published, house.root / "mlflow.db"):
        path.unlink()
    house.launch("a", evaluated())
    assert published.is_file()
    assert house.state()[0] == {"champion": 1}
    assert house.audited() == []
