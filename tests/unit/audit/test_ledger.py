"""The ledger: a chain that tells when it was touched, and folds into versions, aliases and champions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.signing import DistrustError, Keyring, make_key, open_keyring
from hardcase.registry import champion
from hardcase.registry.ledger import (
    Ledger,
    Move,
    Version,
    append,
    fetch_model,
    find_version,
    list_models,
    read_ledger,
    split_spec,
)
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store, open_store

NAME = "m"


def version(number: int, verdict: str = "promoted", **facts: Any) -> Version:
    named = {"digest": f"{number:064}", "evaluation": f"{number + 100:064}", "fingerprint": f"f{number}"}
    rest = dict.fromkeys(("pinned", "reference", "reference_evaluation", "gate", "statement", "dossier"), "")
    return Version.model_validate({"number": number, "verdict": verdict, "reasons": ["why"], **named, **rest, **facts})


def made(number: int, verdict: str = "promoted", **facts: Any) -> Move:
    alias = "champion" if verdict == "promoted" else "challenger"
    return Move.model_validate(
        {
            "alias": alias,
            "version": number,
            "who": "w",
            "when": "t",
            "why": "y",
            "made": version(number, verdict, **facts),
        }
    )


def back(number: int) -> Move:
    return Move(alias="champion", version=number, who="w", when="t", why="y")


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    make_key(tmp_path / "keys")
    return open_keyring(str(tmp_path / "keys" / "signing.pem"), [])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def written(store: Store, keys: Keyring, *moves: Move) -> Ledger:
    for move in moves:
        assert append(store, keys, read_ledger(store, NAME, keys), move)
    return read_ledger(store, NAME, keys)


def test_aliases_follow_the_moves(store: Store, keys: Keyring) -> None:
    ledger = written(store, keys, made(1), made(2), made(3, "rejected"), made(4), back(2))
    assert ledger.aliases == {"champion": 2, "challenger": 3}
    assert [each.number for each in ledger.champions] == [1, 2]
    assert written(store, keys, made(5), back(2), back(1)).aliases["champion"] == 1
    assert list_models(store) == [NAME]


@given(st.lists(st.sampled_from(["promoted", "rejected", "back", "by hand"]), max_size=12))
@settings(deadline=None)
def test_rolling_back_walks_the_champions_in_reverse(actions: list[str]) -> None:
    moves: list[Move] = []
    reign: list[int] = []
    for action in actions:
        if action == "back":
            if len(reign) > 1:
                reign.pop()
                moves.append(back(reign[-1]))
            continue
        if action == "by hand":
            others = [
                number for number in range(1, 1 + len([move for move in moves if move.made])) if number not in reign
            ]
            if others:
                reign.append(others[-1])
                moves.append(back(others[-1]).model_copy(update={"promotion": True}))
            continue
        number = len([move for move in moves if move.made]) + 1
        moves.append(made(number, action))
        reign += [number] if action == "promoted" else []
    ledger = Ledger(NAME, moves, [])
    assert [each.number for each in ledger.champions] == reign
    assert ledger.aliases.get("champion") == (reign[-1] if reign else None)


@pytest.mark.parametrize(
    "move",
    [made(3), made(1), back(2), back(1), back(7), made(2).model_copy(update={"version": 1})],
    ids=["skips one", "again", "of itself", "to none before", "to what is not there", "two numbers"],
)
def test_move_against_the_rules_is_no_entry_whoever_signed_it(store: Store, keys: Keyring, move: Move) -> None:
    ledger = written(store, keys, made(1))
    # A program that knows of versions 1 to 8 and of no rules.
    lawless = Ledger(NAME, ledger.moves, ledger.digests)
    lawless.__dict__["versions"] = {number: version(number) for number in range(1, 9)}
    assert append(store, keys, lawless, move)
    with pytest.raises(DistrustError, match=r"000002\.dsse\.json: moves champion to version \d against the rules"):
        read_ledger(store, NAME, keys)


def test_entry_of_format_1_that_held_a_model_reads_as_rejected(store: Store, keys: Keyring) -> None:
    """It is never written anew: the next entry names its bytes as they were signed."""
    entry = f"models/{NAME}/ledger/000001.dsse.json"
    append(store, keys, read_ledger(store, NAME, keys), made(1, "rejected"))
    statement = keys.open_envelope(store.get_named(entry) or b"", entry)
    statement["predicate"]["made"]["verdict"] = "held"
    old = open_store(f"{store.uri}-of-format-1")
    old.put_named(entry, keys.sign(statement))
    assert written(old, keys, made(2)).digests[0] == bytes_digest(old.get_named(entry) or b"")
    assert {n: each.verdict for n, each in read_ledger(old, NAME, keys).versions.items()} == {
        1: "rejected",
        2: "promoted",
    }


def test_entry_removed_from_the_middle_is_missed(store: Store, keys: Keyring, tmp_path: Path) -> None:
    written(store, keys, made(1), made(2), made(3))
    (tmp_path / "store" / "models" / NAME / "ledger" / "000002.dsse.json").unlink()
    with pytest.raises(DistrustError, match=r"000002\.dsse\.json: missing"):
        read_ledger(store, NAME, keys)


def test_entry_of_another_model_is_no_entry_here(store: Store, keys: Keyring, tmp_path: Path) -> None:
    written(store, keys, made(1))
    folder = tmp_path / "store" / "models"
    (folder / "other" / "ledger").mkdir(parents=True)
    entry = (folder / NAME / "ledger" / "000001.dsse.json").read_bytes()
    (folder / "other" / "ledger" / "000001.dsse.json").write_bytes(entry)
    with pytest.raises(DistrustError, match="not an entry of the ledger of other"):
        read_ledger(store, "other", keys)


def test_second_writer_of_an_entry_is_told_to_look_again(store: Store, keys: Keyring) -> None:
    empty = read_ledger(store, NAME, keys)
    assert append(store, keys, empty, made(1))
    assert not append(store, keys, empty, made(1, fingerprint="late"))
    assert read_ledger(store, NAME, keys).versions[1].fingerprint == "f1"


def test_first_run_done_again_pins_the_same(store: Store, keys: Keyring) -> None:
    assert Ledger(NAME).pin("f1") == ("", "")
    assert written(store, keys, made(1)).pin("f1") == ("", "")


def test_next_run_is_measured_against_the_champion_and_pins_the_same_ever_after() -> None:
    first = Ledger(NAME, [made(1)])
    assert first.pin("f2") == ("1", version(1).evaluation)
    judged = {"reference": "1", "reference_evaluation": version(1).evaluation}
    second = Ledger(NAME, [made(1), made(2, **judged)])
    assert second.pin("f2") == ("1", version(1).evaluation)
    assert second.pin("f3") == ("2", version(2).evaluation)


def test_rejected_run_done_again_pins_the_same_until_the_champion_changes() -> None:
    judged = {"reference": "1", "reference_evaluation": version(1).evaluation}
    moves = [made(1), made(2, "rejected", **judged)]
    assert Ledger(NAME, moves).pin("f2") == ("1", version(1).evaluation)
    assert Ledger(NAME, [*moves, made(3)]).pin("f2") == ("3", version(3).evaluation)


def test_without_a_champion_the_newest_other_version_is_the_reference() -> None:
    second = made(2, "rejected", reference_evaluation=version(1).evaluation)
    ledger = Ledger(NAME, [made(1, "rejected"), second])
    assert ledger.pin("f3") == ("", version(2).evaluation)
    assert ledger.pin("f2") == ("", version(1).evaluation)
    assert ledger.pin("f1") == ("", "")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("other@champion", "these are: m"),
        ("m@challenger", "@champion (:1)"),
        ("m:7", "versions :1"),
        ("m:0", "versions :1"),
        ("../../etc@champion", "NAME@ALIAS"),
        ("m' OR name != '@champion", "NAME@ALIAS"),
        ("m@champion\n", "NAME@ALIAS"),
        ("m/../x", "NAME@ALIAS"),
        ("m%2e%2e", "NAME@ALIAS"),
        ("m\\x", "NAME@ALIAS"),
        ("", "NAME@ALIAS"),
    ],
)
def test_unknown_model_is_refused_naming_what_exists(
    store: Store, keys: Keyring, tmp_path: Path, spec: str, hint: str
) -> None:
    written(store, keys, made(1))
    with pytest.raises(InputError) as refusal:
        fetch_model(store, keys, spec, tmp_path / "model")
    assert hint in str(refusal.value)
    assert not (tmp_path / "model").exists()


def test_name_alone_is_the_champion(store: Store, keys: Keyring) -> None:
    written(store, keys, made(1), made(2), made(3, "rejected"))
    assert find_version(store, keys, NAME).number == 2
    assert [split_spec(spec) for spec in (NAME, "m:1", "m@champion")] == [NAME] * 3


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a'b", "a@b", "a:1", "a\n"])
def test_names_that_could_mean_a_path_or_a_query_are_refused(store: Store, keys: Keyring, name: str) -> None:
    with pytest.raises(InputError, match=r"register\.name"):
        read_ledger(store, name, keys)


def roll_back(store: Store, keys: Keyring, spec: str, who: str, why: str, verify: Any) -> tuple[Version, bool]:
    outcome = champion.roll_back(store, keys, spec, who, why, verify)
    return outcome.champion, outcome.moved


def test_rollback_asks_first_whether_its_target_is_whole(store: Store, keys: Keyring) -> None:
    written(store, keys, made(1), made(2))
    asked: list[int] = []
    restored, moved = roll_back(store, keys, NAME, "me", "why not", lambda target: asked.append(target.number))
    assert (restored.number, moved) == (1, True)
    assert asked == [1]
    move = read_ledger(store, NAME, keys).moves[-1]
    assert (move.who, move.why, move.made) == ("me", "why not", None)

    def broken(target: Version) -> None:
        raise DistrustError("gone")

    written(store, keys, made(3))
    with pytest.raises(DistrustError, match="gone"):
        roll_back(store, keys, NAME, "me", "", broken)
    assert read_ledger(store, NAME, keys).aliases["champion"] == 3


def ok(target: Version) -> None:
    pass


def test_rollback_done_again_changes_nothing_and_a_version_named_goes_further_back(store: Store, keys: Keyring) -> None:
    written(store, keys, made(1), made(2), made(3))
    steps = [
        roll_back(store, keys, spec, "me", "", ok) for spec in (NAME, NAME, "m@champion", "m:2", "m:1", "m:1", NAME)
    ]
    assert [(restored.number, moved) for restored, moved in steps] == [
        *((2, True), (2, False), (2, False), (2, False), (1, True), (1, False), (1, False))
    ]
    assert [move.version for move in read_ledger(store, NAME, keys).moves] == [1, 2, 3, 2, 1]
    written(store, keys, made(4, "rejected"))
    assert roll_back(store, keys, NAME, "me", "", ok)[1] is False
    written(store, keys, made(5))
    assert roll_back(store, keys, NAME, "me", "", ok)[0].number == 1


@pytest.mark.parametrize("spec", ["m:4", "m:2", "m:7", "m@challenger"])
def test_rollback_to_what_is_no_earlier_champion_is_refused(store: Store, keys: Keyring, spec: str) -> None:
    written(store, keys, made(1), made(2), made(3), back(1), made(4, "rejected"))
    with pytest.raises(InputError, match=r"m:\d: cannot be restored; its champions are :1|name m or m:VERSION"):
        roll_back(store, keys, spec, "me", "", ok)
    assert read_ledger(store, NAME, keys).aliases["champion"] == 1


@pytest.mark.parametrize("spec", [NAME, "m:2"])
def test_promotion_during_a_rollback_is_not_undone_by_it(store: Store, keys: Keyring, spec: str) -> None:
    written(store, keys, made(1), made(2), made(3))
    with pytest.raises(HardcaseError, match="its champion changed to :4 meanwhile"):
        roll_back(store, keys, spec, "me", "", lambda target: written(store, keys, made(4)))
    assert read_ledger(store, NAME, keys).aliases["champion"] == 4


def test_rollback_of_another_operator_to_the_same_version_is_taken_for_ones_own(store: Store, keys: Keyring) -> None:
    written(store, keys, made(1), made(2), made(3))
    restored, moved = roll_back(store, keys, NAME, "me", "", lambda target: written(store, keys, back(2)))
    assert (restored.number, moved) == (2, False)
    assert len(read_ledger(store, NAME, keys).moves) == 4


def test_registration_of_a_challenger_during_a_rollback_does_not_stop_it(store: Store, keys: Keyring) -> None:
    written(store, keys, made(1), made(2))
    restored, moved = roll_back(
        store, keys, NAME, "me", "", lambda target: written(store, keys, made(3, "rejected")) and None
    )
    assert (restored.number, moved) == (1, True)


def test_equal_moves_of_the_same_second_have_unlike_entries_and_one_writer(store: Store, keys: Keyring) -> None:
    ledger = written(store, keys, made(1), made(2))
    assert [append(store, keys, ledger, back(1)) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("race", range(20))
def test_two_rollbacks_and_a_promotion_at_once_are_one_step_each_in_the_order_of_the_ledger(
    store: Store, keys: Keyring, race: int
) -> None:
    written(store, keys, made(1), made(2), made(3))
    start = threading.Barrier(3)

    def promote() -> None:
        start.wait()
        while not append(store, keys, ledger := read_ledger(store, NAME, keys), made(4)):
            assert 4 not in ledger.versions

    def undo(who: str) -> tuple[int, bool] | None:
        start.wait()
        try:
            restored, moved = roll_back(store, keys, NAME, who, "", ok)
        except HardcaseError:
            return None
        return restored.number, moved

    with ThreadPoolExecutor(3) as pool:
        promotion, *rollbacks = pool.submit(promote), pool.submit(undo, "x"), pool.submit(undo, "y")
        promotion.result()
        outcomes = {who: rollback.result() for who, rollback in zip("xy", rollbacks, strict=True)}
    moves = read_ledger(store, NAME, keys).moves
    assert [move.version for move in moves if move.made] == [1, 2, 3, 4]
    for number, move in enumerate(moves):
        before = Ledger(NAME, moves[:number]).champions
        assert move.made or move.version == before[-2].number
        assert move.made or outcomes[move.who] == (move.version, True)
    recorded = sorted(move.who for move in moves if not move.made)
    assert recorded == sorted(who for who, outcome in outcomes.items() if outcome and outcome[1])
