"""The ledger of a registered model: signed entries in the store, each naming the one before; the registry of record.

Entry n lies under `models/<name>/ledger/<n>.dsse.json`, written if absent. An entry makes a version and moves an alias
in one step, so two runs that end at once cannot lose a version or make two champions, and a process killed at any
moment leaves a whole entry or none. MLflow only shows what stands here.
"""

import datetime
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from hardcase.config import RegisterConfig
from hardcase.data.weights import refuse_pickles
from hardcase.errors import InputError
from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store

ENTRY: Final = "urn:hardcase:ledger:v1"
MODELS: Final = "models"
Alias = Literal["champion", "challenger"]
CHAMPION: Final[Alias] = "champion"
CHALLENGER: Final[Alias] = "challenger"
SPEC: Final = re.compile(
    rf"(?P<name>{RegisterConfig.NAME})(?:@(?P<alias>[\w-]+)|:(?P<version>[0-9]{{1,9}}))?", re.ASCII
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def read_verdict(verdict: Any) -> Any:
    """Return the gate's verdict in today's word: signed records of format 1 say `held` for `rejected`."""
    return "rejected" if verdict == "held" else verdict


class Version(_Record):
    """A registered version: one judgement of one model, never rewritten.

    Attributes:
        number: from 1.
        digest: of the model's folder.
        evaluation: sha256 of the table it was judged by.
        fingerprint: of source, configuration, seed and code.
        pinned: the champion when its run was launched; empty for none.
        reference: the champion when it was judged, which it was judged against; empty for none.
        reference_evaluation: what drift compared with; empty for nothing.
        verdict: of the gate.
        reasons: the gate's.
        gate: sha256 of the gate's record.
        statement: sha256 of its signed provenance.
        dossier: digest of the folder of its release dossier.
    """

    number: int
    digest: str
    evaluation: str
    fingerprint: str
    pinned: str
    reference: str
    reference_evaluation: str
    verdict: Annotated[Literal["promoted", "rejected"], BeforeValidator(read_verdict)]
    reasons: list[str]
    gate: str
    statement: str
    dossier: str


class Move(_Record):
    """An alias moved.

    Attributes:
        alias: which.
        version: to where.
        who: moved it.
        when: UTC.
        why: the gate's reasons, or what the user said.
        made: the version that the gate made; None of a rollback.
    """

    alias: Alias
    version: int
    who: str
    when: str
    why: str
    made: Version | None = None


@dataclass(frozen=True)
class Ledger:
    """All entries up to some moment.

    Attributes:
        name: of the registered model.
        moves: in order.
        digests: sha256 of each entry as it lies in the store.
    """

    name: str
    moves: Sequence[Move] = ()
    digests: Sequence[str] = ()

    @cached_property
    def versions(self) -> dict[int, Version]:
        """By number."""
        return {move.made.number: move.made for move in self.moves if move.made}

    @cached_property
    def champions(self) -> list[Version]:
        """The champion, last, and those that a rollback would bring back, one after the other."""
        reign: list[int] = []
        for move in self.moves:
            if move.alias == CHAMPION:
                reign = reign if move.made else reign[: reign.index(move.version)]
                reign.append(move.version)
        return [self.versions[number] for number in reign]

    @property
    def champion(self) -> Version | None:
        """The version that serves."""
        return self.champions[-1] if self.champions else None

    @property
    def aliases(self) -> dict[str, int]:
        """Where they point."""
        challengers = [move.version for move in self.moves if move.alias == CHALLENGER]
        places: dict[str, int] = {CHAMPION: self.champion.number} if self.champion else {}
        return places | ({CHALLENGER: challengers[-1]} if challengers else {})

    def find(self, spec: str) -> Version:
        """The version that `NAME`, `NAME@ALIAS` or `NAME:VERSION` names; the champion if neither is said.

        Raises:
            InputError: there is none.
        """
        parts = SPEC.fullmatch(spec)
        assert parts is not None and parts["name"] == self.name
        alias = parts["alias"] or CHAMPION
        number = int(parts["version"]) if parts["version"] else self.aliases.get(alias)
        if number not in self.versions:
            aliases = ", ".join(f"@{alias} (:{place})" for alias, place in sorted(self.aliases.items())) or "no alias"
            known = ", ".join(f":{number}" for number in self.versions)
            raise InputError(f"model {spec!r}: not registered; {self.name} has {aliases} and the versions {known}")
        return self.versions[number]

    def pin(self, fingerprint: str) -> tuple[str, str]:
        """What a run of this fingerprint is measured against: number of the champion, sha256 of an evaluation.

        The champion and its evaluation; without a champion, the evaluation of the newest version of another
        fingerprint. Where this fingerprint has been judged and nothing changed since, the same again, so that the same
        run has the same parameters.
        """
        champion = self.champion
        if champion and champion.fingerprint == fingerprint:
            return champion.reference, champion.reference_evaluation
        against = str(champion.number) if champion else ""
        newest_first = list(reversed(self.versions.values()))
        for own in newest_first:
            if own.fingerprint == fingerprint and own.reference == against:
                return against, own.reference_evaluation
        others = (version for version in newest_first if version.fingerprint != fingerprint)
        before = champion or next(others, None)
        return against, before.evaluation if before else ""

    def judged(self, digest: str, evaluation: str, fingerprint: str, pinned: str) -> Version | None:
        """The version that this work made before, if it did."""
        for version in self.versions.values():
            same = (version.digest, version.evaluation, version.fingerprint) == (digest, evaluation, fingerprint)
            if same and pinned in (version.pinned, version.reference):
                return version
        return None


def split_spec(spec: str) -> str:
    """The name in `NAME`, `NAME@ALIAS` or `NAME:VERSION`.

    Raises:
        InputError: not of this form.
    """
    if (parts := SPEC.fullmatch(spec)) is None:
        raise InputError(f"model {spec!r}: no such folder; name a folder, NAME, NAME@ALIAS or NAME:VERSION")
    return parts["name"]


def models(store: Store) -> list[str]:
    """The names of all registered models."""
    return sorted({name.split("/")[1] for name in store.list_names(MODELS)})


def read_ledger(store: Store, name: str, keys: Keyring) -> Ledger:
    """The ledger as it stands; empty if there is none.

    Raises:
        InputError: no such name can be.
        DistrustError: an entry is missing, altered, out of its place, or signed by nobody trusted.
    """
    if not re.fullmatch(RegisterConfig.NAME, name):
        raise InputError(f"model name {name!r}: not letters, digits and `._-`; mend `register.name`")
    folder = f"{MODELS}/{name}/ledger"
    keys_there = store.list_names(folder)
    with ThreadPoolExecutor(8) as pool:
        envelopes = list(pool.map(store.get_named, keys_there))
    moves: list[Move] = []
    digests: list[str] = []
    for place, (key, envelope) in enumerate(zip(keys_there, envelopes, strict=True), start=1):
        if key != entry_name(name, place):
            raise DistrustError(f"{entry_name(name, place)}: missing, while {key} is there; bring back the original")
        sequence, previous, move = _opened(envelope or b"", keys, key, name)
        if sequence != place or previous != (digests[-1] if digests else ""):
            raise DistrustError(f"{key}: an entry of another place or chain; bring back the original")
        if not _follows(Ledger(name, moves, digests), move):
            raise DistrustError(f"{key}: moves {move.alias} to version {move.version} against the rules")
        moves.append(move)
        digests.append(bytes_digest(envelope or b""))
    return Ledger(name, tuple(moves), tuple(digests))


def append(store: Store, keys: Keyring, ledger: Ledger, move: Move) -> bool:
    """Write the next entry; False if another process has written it, which is to be read before trying again."""
    sequence = len(ledger.moves) + 1
    moved = move.made or ledger.versions[move.version]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": f"{ledger.name}:{move.version}", "digest": {"sha256": moved.digest}}],
        "predicateType": ENTRY,
        "predicate": {
            "sequence": sequence,
            "previous": ledger.digests[-1] if ledger.digests else "",
            **move.model_dump(mode="json"),
        },
    }
    keys.publish(store)
    return store.put_named(entry_name(ledger.name, sequence), keys.sign(statement))


def publish_dossier(store: Store, name: str, version: Version) -> list[str]:
    """Lay a version's dossier where people find it, `models/<name>/<version>/`; what lies there already stays.

    Returns:
        The names of its files there.
    """
    files = json.loads(store.get_object(version.dossier))
    for file, digest in files.items():
        store.put_named(dossier_name(name, version.number, file), store.get_object(digest))
    return [dossier_name(name, version.number, file) for file in files]


def dossier_name(name: str, version: int, file: str) -> str:
    """Where a file of a version's dossier lies in the store."""
    return f"{MODELS}/{name}/{version}/{file}"


def roll_back(store: Store, keys: Keyring, name: str, who: str, why: str, whole: Callable[[Version], None]) -> Version:
    """Let the alias `champion` name the champion before this one.

    Args:
        store: of the ledger.
        keys: to sign with.
        name: of the model.
        who: does it.
        why: in the user's words.
        whole: called with the version that is to serve again; raises if it is not as it was.

    Raises:
        InputError: there was no champion before.
    """
    while True:
        ledger = read_ledger(store, name, keys)
        if len(ledger.champions) < 2:
            now = f"its only champion is :{ledger.champion.number}" if ledger.champion else "it has no champion"
            raise InputError(f"model {name}: nothing to roll back to: {now}; `hardcase audit {name}` shows its history")
        target = ledger.champions[-2]
        whole(target)
        move = Move(alias=CHAMPION, version=target.number, who=who, when=now_utc(), why=why)
        if append(store, keys, ledger, move):
            return target


def fetch_model(store: Store, keys: Keyring, spec: str, dest: Path) -> None:
    """Write a registered model's files as the folder `dest`, every signature and digest verified.

    Args:
        store: where it lies.
        keys: who is trusted.
        spec: `NAME`, `NAME@ALIAS` or `NAME:VERSION`.
        dest: a folder that is empty or not there yet.

    Raises:
        InputError: no such model is registered.
        HardcaseError: it is not in the store as it was.
    """
    version = find_version(store, keys, spec)
    statement = keys.open_envelope(store.get_object(version.statement), f"statement {version.statement}")
    if statement["subject"][0]["digest"]["sha256"] != version.digest:
        raise DistrustError(f"statement {version.statement}: of another model than {spec}; bring back the original")
    draft = dest.with_name(f".{dest.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        store.get_folder(version.digest, draft)
        refuse_pickles(draft)
        draft.replace(dest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def find_version(store: Store, keys: Keyring, spec: str) -> Version:
    """The version of that name.

    Raises:
        InputError: no such model is registered.
        DistrustError: the ledger is not as it was.
    """
    ledger = read_ledger(store, split_spec(spec), keys)
    if not ledger.moves:
        known = ", ".join(models(store)) or "none; run `hardcase run` first"
        raise InputError(f"model {spec!r}: not registered in {store.uri}; these are: {known}")
    return ledger.find(spec)


def now_utc() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def entry_name(name: str, sequence: int) -> str:
    """Where an entry lies in the store."""
    return f"{MODELS}/{name}/ledger/{sequence:06}.dsse.json"


def _follows(ledger: Ledger, move: Move) -> bool:
    """Whether it makes the next version, promoted or rejected, or goes back to an earlier champion."""
    if move.made is None:
        return move.alias == CHAMPION and move.version in [version.number for version in ledger.champions[:-1]]
    alias = CHAMPION if move.made.verdict == "promoted" else CHALLENGER
    return move.version == move.made.number == len(ledger.versions) + 1 and move.alias == alias


def _opened(envelope: bytes, keys: Keyring, key: str, name: str) -> tuple[int, str, Move]:
    statement = keys.open_envelope(envelope, key)
    try:
        assert statement["predicateType"] == ENTRY
        predicate: Mapping[str, Any] = statement["predicate"]
        facts = {field: value for field, value in predicate.items() if field not in ("sequence", "previous")}
        move = Move.model_validate(facts)
        assert statement["subject"][0]["name"] == f"{name}:{move.version}"
        return predicate["sequence"], predicate["previous"], move
    except (KeyError, TypeError, AssertionError, ValidationError) as error:
        raise DistrustError(
            f"{key}: signed, but not an entry of the ledger of {name}; bring back the original"
        ) from error
