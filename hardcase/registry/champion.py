"""Moves of the alias `champion` by people: rollback and promotion, each one signed entry of the ledger.

The target is chosen once, from the ledger as it is read first. A move is written only while the champion is still the
one that the user saw, and a command that is repeated after a lost answer recognises what it did.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.signing import Keyring
from hardcase.registry.ledger import (
    CHAMPION,
    Ledger,
    Move,
    Version,
    append,
    now_utc,
    parse_spec,
    read_ledger,
    split_spec,
)
from hardcase.store.store import Store

Verify = Callable[[Version], None]


@dataclass(frozen=True)
class Outcome:
    """Champion after a command, the champion before it or None, and whether the command moved the alias."""

    champion: Version
    replaced: Version | None
    moved: bool


def roll_back(store: Store, keys: Keyring, spec: str, who: str, why: str, verify: Verify) -> Outcome:
    """Move the alias `champion` back to an earlier champion.

    Args:
        store: store of the ledger.
        keys: keyring that signs.
        spec: `NAME:VERSION`, or `NAME` for the champion before the one that a run or a person promoted. A champion that
            a rollback restored stays.
        who: name of the user, for the record.
        why: reason, for the record.
        verify: raises if a version is not intact.

    Returns:
        The outcome. Nothing was moved if the target was champion already.

    Raises:
        InputError: there is no such target.
        HardcaseError: another process changed the champion at the same time; nothing was moved.
    """
    ledger = read_ledger(store, split_spec(spec), keys)
    target = _find_earlier(ledger, spec)
    return _move(store, keys, ledger, target, verify, who=who, why=why)


def promote(store: Store, keys: Keyring, spec: str, who: str, why: str, verify: Verify) -> Outcome:
    """Make the registered version `NAME:VERSION` champion on a person's word, whatever the gate said of it.

    The arguments and the outcome are as of `roll_back`.

    Raises:
        InputError: there is no such version, it was champion before, or the reason is empty.
        HardcaseError: another process changed the champion at the same time; nothing was moved.
    """
    if not why.strip():
        raise InputError(f"model {spec}: a promotion by hand needs a reason; give one by --why")
    name, number = parse_spec(spec).group("name", "version")
    ledger = read_ledger(store, name, keys)
    if not number:
        raise InputError(f"model {spec}: a promotion names a version; `hardcase audit {name}` shows them")
    target = ledger.find(spec)
    if target in ledger.champions[:-1]:
        raise InputError(f"model {spec}: was champion before; `hardcase rollback {spec}` restores it")
    return _move(store, keys, ledger, target, verify, who=who, why=why, promotion=True)


def _move(
    store: Store,
    keys: Keyring,
    ledger: Ledger,
    target: Version,
    verify: Verify,
    *,
    who: str,
    why: str,
    promotion: bool = False,
) -> Outcome:
    replaced = ledger.champion
    if target != replaced:
        verify(target)
    while ledger.champion == replaced != target:
        move = Move(alias=CHAMPION, version=target.number, who=who, when=now_utc(), why=why, promotion=promotion)
        if append(store, keys, ledger, move):
            return Outcome(target, replaced, moved=True)
        ledger = read_ledger(store, ledger.name, keys)
    if target != ledger.champion:
        now = f":{ledger.champion.number}" if ledger.champion else "none"
        raise HardcaseError(f"model {ledger.name}: its champion changed to {now} meanwhile; look, then run again")
    return Outcome(target, replaced, moved=False)


def _find_earlier(ledger: Ledger, spec: str) -> Version:
    """Return the champion that a rollback to `spec` restores."""
    name, alias, number = parse_spec(spec).group("name", "alias", "version")
    history = f"`hardcase audit {name}` shows its history"
    if alias not in (None, CHAMPION):
        raise InputError(f"model {spec}: a rollback restores an earlier champion; name {name} or {name}:VERSION")
    nothing = f"model {name}: nothing to roll back to"
    if ledger.champion is None:
        raise InputError(f"{nothing}: it has no champion; {history}")
    if number:
        by_number = {version.number: version for version in ledger.champions}
        if int(number) not in by_number:
            earlier = ", ".join(f":{known}" for known in by_number)
            raise InputError(f"model {spec}: cannot be restored; its champions are {earlier}; {history}")
        return by_number[int(number)]
    last = [move for move in ledger.moves if move.alias == CHAMPION][-1]
    if last.is_rollback:
        return ledger.champion
    if len(ledger.champions) < 2:
        raise InputError(f"{nothing}: its only champion is :{ledger.champion.number}; {history}")
    return ledger.champions[-2]
