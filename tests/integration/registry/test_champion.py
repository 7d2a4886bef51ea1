"""Promotion and rollback by people: one signed entry each, also when many act at once."""

import json
import multiprocessing
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hardcase.audit.examine import examine
from hardcase.cli.champion import move_champion
from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.signing import Keyring, make_key, open_keyring
from hardcase.registry.champion import promote, roll_back
from hardcase.registry.ledger import CHALLENGER, CHAMPION, Move, Version, append, entry_name, read_ledger
from hardcase.runners.home import Home
from hardcase.store.store import Store, open_store
from tests.integration.registry.conftest import NAME, House
from tests.support.evaluations import evaluated
from tests.support.s3 import moto_bucket

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.integration.registry.conftest"])
ROUNDS, AT_ONCE = 20, 16


def accept(version: Version) -> None:
    """Find a version intact, whichever it is."""


@pytest.fixture
def rejected(house: House) -> House:
    """A house whose champion is :1 and whose gate rejected :2."""
    house.launch("a", evaluated(0.8))
    assert house.launch("b", evaluated(0.5))["verdict"] == "rejected"
    return house


@pytest.fixture
def home(rejected: House) -> Home:
    return Home(rejected.root)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Messages to the webhook of the environment."""
    received = list[dict[str, Any]]()

    class Receiver(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HARDCASE_WEBHOOK", f"http://127.0.0.1:{server.server_address[1]}/T0/secret")
    monkeypatch.setenv("HARDCASE_WHO", "Ada")
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


def test_rejected_version_becomes_champion_on_a_persons_word_and_rollback_undoes_it(
    rejected: House, home: Home, messages: list[dict[str, Any]]
) -> None:
    outcome = move_champion(f"{NAME}:2", home, "the tail is better", promote)
    assert (outcome.champion.number, outcome.moved) == (2, True)
    assert rejected.state()[0] == {"champion": 2}
    assert rejected.audited() == []
    assert move_champion(f"{NAME}:2", home, "again", promote).moved is False
    assert len(rejected.ledger.moves) == 3
    assert move_champion(NAME, home, "it was not", roll_back).champion.number == 1
    assert rejected.state()[0] == {"champion": 1, "challenger": 2}
    assert [message["text"] for message in messages] == [
        f"{NAME}@champion is :2 now, before :1, by Ada: the tail is better",
        f"{NAME}@champion is :1 now, before :2, by Ada: it was not",
    ]
    assert messages[0]["why"] == "the tail is better"


def test_audit_shows_who_promoted_and_why(rejected: House, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_WHO", "Ada")
    move_champion(f"{NAME}:2", home, "the tail is better", promote)
    entries = examine(rejected.store, NAME, rejected.keys).tree.parts[1].parts
    assert f"promoted by hand {NAME}:2, champion, by Ada: the tail is better" in entries[2].what


def test_first_model_that_was_rejected_can_be_promoted(house: House) -> None:
    """There is no champion that the promotion could replace."""
    worthless = {"final": {"overall": float("nan"), "exact_match": 0.0}}
    assert house.launch("a", evaluated(0.8), scores=worthless)["verdict"] == "rejected"
    outcome = promote(house.store, house.keys, f"{NAME}:1", "Ada", "a demonstration", accept)
    assert (outcome.replaced, outcome.moved) == (None, True)
    assert house.ledger.aliases == {CHAMPION: 1}


def test_version_that_a_rollback_left_is_promoted_again(house: House) -> None:
    for fingerprint, exact in (("a", 0.7), ("b", 0.8)):
        house.launch(fingerprint, evaluated(exact))
    roll_back(house.store, house.keys, NAME, "Ada", "", accept)
    assert promote(house.store, house.keys, f"{NAME}:2", "Ada", "it was right", accept).moved
    assert [version.number for version in house.ledger.champions] == [1, 2]


@pytest.mark.parametrize(
    ("spec", "why", "said"),
    [
        (NAME, "because", "names a version"),
        (f"{NAME}@challenger", "because", "names a version"),
        (f"{NAME}:9", "because", "not registered"),
        (f"{NAME}:2", " ", "give one by --why"),
        (f"{NAME}:1", "because", f"`hardcase rollback {NAME}:1` restores it"),
    ],
)
def test_promotion_that_is_none_is_refused_in_one_line(rejected: House, spec: str, why: str, said: str) -> None:
    promote(rejected.store, rejected.keys, f"{NAME}:2", "Ada", "so that :1 is earlier", accept)
    with pytest.raises(InputError, match=said):
        promote(rejected.store, rejected.keys, spec, "Ada", why, accept)
    assert len(rejected.ledger.moves) == 3


def test_version_that_is_not_intact_is_not_promoted(rejected: House, home: Home) -> None:
    (rejected.root / "store" / "models" / NAME / "2" / "README.md").write_text("altered")
    with pytest.raises(HardcaseError, match=r"cannot serve: .*README\.md: was altered"):
        move_champion(f"{NAME}:2", home, "because", promote)
    assert rejected.ledger.aliases[CHAMPION] == 1


def test_audit_names_a_promotion_that_was_altered(rejected: House) -> None:
    promote(rejected.store, rejected.keys, f"{NAME}:2", "Ada", "because", accept)
    entry = rejected.root / "store" / entry_name(NAME, 3)
    envelope = json.loads(entry.read_bytes())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAAA"
    entry.write_text(json.dumps(envelope))
    assert any(entry_name(NAME, 3) in problem for problem in rejected.audited())


def test_promotion_entry_of_the_champion_before_breaks_the_rules_of_the_ledger(rejected: House) -> None:
    """A signed entry, which only a program can write that is not this one."""
    promote(rejected.store, rejected.keys, f"{NAME}:2", "Ada", "because", accept)
    move = Move(alias=CHAMPION, version=1, who="Eve", when="", why="", promotion=True)
    assert append(rejected.store, rejected.keys, rejected.ledger, move)
    assert any("against the rules" in problem for problem in rejected.audited())


def _promote_with_others(root: Path, number: int, barrier: Barrier, results: "Queue[str]") -> None:
    house = House(root)
    try:
        promote(
            house.store, house.keys, f"{NAME}:{number}", f"user {number}", "mine", lambda _: barrier.wait(60) and None
        )
        results.put("moved")
    except HardcaseError as error:
        results.put(str(error))


def test_sixteen_promotions_at_once_make_one_champion(house: House) -> None:
    house.launch("a", evaluated(0.9))
    for number in range(AT_ONCE):
        house.launch(f"n{number}", evaluated(0.3 + number / 100, rows=120))
    barrier, results = FORK.Barrier(AT_ONCE), FORK.Queue()
    processes = [
        FORK.Process(target=_promote_with_others, args=(house.root, number + 2, barrier, results))
        for number in range(AT_ONCE)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert outcomes.count("moved") == 1
    assert sum("its champion changed to" in outcome for outcome in outcomes) == AT_ONCE - 1
    assert len(house.ledger.moves) == AT_ONCE + 2
    assert house.ledger.champion is not None
    assert house.ledger.moves[-1].who == f"user {house.ledger.champion.number}"


def version(number: int, verdict: str) -> Version:
    """Return a version whose objects nobody looks at."""
    digest = f"{number:064x}"
    texts = dict.fromkeys(("fingerprint", "pinned", "reference", "reference_evaluation", "gate", "dossier"), "")
    content = {"number": number, "verdict": verdict, "reasons": [], "digest": digest, "evaluation": digest}
    return Version.model_validate({**texts, **content, "statement": digest})


def make_ledger(store: Store, keys: Keyring, name: str) -> None:
    """Register three champions and a version that is rejected."""
    for number in (1, 2, 3, 4):
        verdict, alias = ("rejected", CHALLENGER) if number == 4 else ("promoted", CHAMPION)
        move = Move(alias=alias, version=number, who="", when="", why="", made=version(number, verdict))
        assert append(store, keys, read_ledger(store, name, keys), move)


def _act(actor: int, key: str, barrier: Barrier, results: "Queue[tuple[int, int, str]]") -> None:
    store, keys = open_store("s3://ledger/store", cached=False), open_keyring(key, [])
    for number in range(ROUNDS):
        act, spec = (promote, f"m{number}:4") if actor == 2 else (roll_back, f"m{number}")
        barrier.wait(60)
        try:
            outcome = act(store, keys, spec, f"actor {actor}", "at once", accept)
            results.put((number, actor, "moved" if outcome.moved else "not moved"))
        except HardcaseError as error:
            results.put((number, actor, str(error)))


def test_two_rollbacks_and_a_promotion_at_once_are_one_step_each(tmp_path: Path) -> None:
    """Three processes, twenty times, on S3: the order of the ledger explains what each of them did."""
    make_key(tmp_path)
    keys = open_keyring(str(tmp_path / "signing.pem"), [])
    with moto_bucket("ledger"):
        store = open_store("s3://ledger/store", cached=False)
        for number in range(ROUNDS):
            make_ledger(store, keys, f"m{number}")
        barrier, results = SPAWN.Barrier(3), SPAWN.Queue()
        actors = [
            SPAWN.Process(target=_act, args=(actor, str(tmp_path / "signing.pem"), barrier, results))
            for actor in range(3)
        ]
        for process in actors:
            process.start()
        outcomes = [results.get(timeout=120) for _ in range(ROUNDS * 3)]
        for process in actors:
            process.join()
        for number in range(ROUNDS):
            ledger = read_ledger(store, f"m{number}", keys)
            moved = {f"actor {actor}" for at, actor, outcome in outcomes if (at, outcome) == (number, "moved")}
            assert {move.who for move in ledger.moves[4:]} == moved
            assert len(ledger.moves) == 4 + len(moved)
            champions = [1, 2, 3]
            for move in ledger.moves[4:]:
                champions = [*champions, 4] if move.promotion else champions[:-1]
                assert move.version == champions[-1]
            for at, _, outcome in outcomes:
                if at == number and outcome not in ("moved", "not moved"):
                    assert "its champion changed to" in outcome
    assert len({outcome for _, _, outcome in outcomes}) > 1, "they never met"
