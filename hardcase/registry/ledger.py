"""The ledger of a registered model: signed entries in the store, each naming the previous one; the registry of record.

Entry n is `models/<name>/ledger/<n>.dsse.json`, written only if absent. One entry makes a version and moves an alias,
so runs that end concurrently cannot lose a version or make two champions, and an interrupted process leaves a complete
entry or none. MLflow only mirrors the ledger.

The format version of an entry is the one in its predicate type. Format 1 says `held` where format 2 says `rejected`.
"""

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from hardcase.config import RegisterConfig
from hardcase.errors import InputError
from hardcase.formats import check_type
from hardcase.provenance.products import fetch_folder
from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store

ENTRY: Final = "urn:hardcase:ledger:"
FORMAT: Final = 2
MODELS: Final = "models"
Alias = Literal["champion", "challenger"]
CHAMPION: Final[Alias] = "champion"
CHALLENGER: Final[Alias] = "challenger"
SPEC: Final = re.compile(
    rf"(?P<name>{RegisterConfig.NAME})(?:@(?P<alias>[\w-]+)|:(?P<version>[0-9]{{1,9}}))?", re.ASCII
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


def read_verdict(verdict: Any) -> Any:
    """Return the gate's verdict in today's word: signed records of format 1 say `held` for `rejected`."""
    return "rejected" if verdict == "held" else verdict


class Version(_Record):
    """A registered version: one judgement of one model, never rewritten. docs/reference/formats.md says its fields."""

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
    run: str = ""


class Move(_Record):
    """A move of an alias to a version.

    It registers the version (`made`), is a person's `promotion` of a version that no gate made champion or that a
    rollback left, or is a rollback to an earlier champion.
    """

    alias: Alias
    version: int
    who: str
    when: str
    why: str
    made: Version | None = None
    promotion: bool = False
    nonce: str = ""  # no two entries have equal bytes, so a writer recognises its own

    @property
    def is_rollback(self) -> bool:
        """Whether the move restores an earlier champion."""
        return self.made is None and not self.promotion


@dataclass(frozen=True)
class Ledger:
    """All entries up to some moment: the moves in order, and the sha256 of each stored entry."""

    name: str
    moves: Sequence[Move] = ()
    digests: Sequence[str] = ()

    @cached_property
    def versions(self) -> dict[int, Version]:
        """Return the versions by number."""
        return {move.made.number: move.made for move in self.moves if move.made}

    @cached_property
    def champions(self) -> list[Version]:
        """Return the champion, last, after the earlier champions that rollbacks would restore in reverse order."""
        reign: list[int] = []
        for move in self.moves:
            if move.alias == CHAMPION:
                reign = reign[: reign.index(move.version)] if move.is_rollback else reign
                reign.append(move.version)
        return [self.versions[number] for number in reign]

    @property
    def champion(self) -> Version | None:
        """Return the version that the alias `champion` names."""
        return self.champions[-1] if self.champions else None

    @property
    def aliases(self) -> dict[str, int]:
        """Return the numbers of the versions that the aliases name: `challenger` none that a person promoted."""
        numbers: dict[str, int] = {CHAMPION: self.champion.number} if self.champion else {}
        challengers = [move.version for move in self.moves if move.alias == CHALLENGER]
        if challengers and challengers[-1] != numbers.get(CHAMPION):
            numbers[CHALLENGER] = challengers[-1]
        return numbers

    def find(self, spec: str) -> Version:
        """Return the version that `NAME` (its champion), `NAME@ALIAS` or `NAME:VERSION` names; `InputError` if none."""
        parts = SPEC.fullmatch(spec)
        if parts is None or parts["name"] != self.name:
            raise InputError(f"model {spec!r}: not a version of {self.name}")
        number = int(parts["version"]) if parts["version"] else self.aliases.get(parts["alias"] or CHAMPION)
        if number not in self.versions:
            aliases = ", ".join(f"@{alias} (:{at})" for alias, at in sorted(self.aliases.items())) or "no alias"
            known = ", ".join(f":{number}" for number in self.versions)
            raise InputError(f"model {spec!r}: not registered; {self.name} has {aliases} and the versions {known}")
        return self.versions[number]

    def pin(self, fingerprint: str) -> tuple[str, str]:
        """Return what a run of this fingerprint is compared with: number of the champion, sha256 of an evaluation.

        1. If this fingerprint was judged and the champion has not changed since, the result is the one of then, so that
           the same run has the same parameters.
        2. Otherwise it is the champion and its evaluation.
        3. Without a champion, it is the evaluation of the newest version of another fingerprint.
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

    def find_judged(self, digest: str, evaluation: str, fingerprint: str, pinned: str) -> Version | None:
        """Return the version that an earlier attempt of the same run registered, if any."""
        for version in self.versions.values():
            same = (version.digest, version.evaluation, version.fingerprint) == (digest, evaluation, fingerprint)
            if same and pinned in (version.pinned, version.reference):
                return version
        return None


def split_spec(spec: str) -> str:
    """Return the name in `NAME`, `NAME@ALIAS` or `NAME:VERSION`; `InputError` if the text has another form."""
    return parse_spec(spec)["name"]


def parse_spec(spec: str) -> re.Match[str]:
    """Return the groups `name`, `alias` and `version` of a text, of the form as for `split_spec`."""
    if (parts := SPEC.fullmatch(spec)) is None:
        raise InputError(f"model {spec!r}: no such folder; name a folder, NAME, NAME@ALIAS or NAME:VERSION")
    return parts


def list_models(store: Store) -> list[str]:
    """Return the names of all registered models."""
    return sorted({name.split("/")[1] for name in store.list_names(MODELS)})


def read_ledger(store: Store, name: str, keys: Keyring) -> Ledger:
    """Read and verify the ledger of a model; it is empty if there is none.

    Args:
        store: store of the ledger.
        name: name of the model.
        keys: trusted keys.

    Raises:
        InputError: a model cannot have that name.
        DistrustError: an entry is missing, altered, out of place, or not signed by a trusted key.
        NewerFormatError: a newer hardcase wrote an entry.
    """
    if not re.fullmatch(RegisterConfig.NAME, name):
        raise InputError(f"model name {name!r}: not letters, digits and `._-`; correct `register.name`")
    folder = f"{MODELS}/{name}/ledger"
    names = store.list_names(folder)
    with ThreadPoolExecutor(8) as pool:
        envelopes = list(pool.map(store.get_named, names))
    moves, digests = list[Move](), list[str]()
    for number, (entry, envelope) in enumerate(zip(names, envelopes, strict=True), start=1):
        if entry != entry_name(name, number):
            raise DistrustError(f"{entry_name(name, number)}: missing, while {entry} exists; bring back the original")
        sequence, previous, move = _open_entry(envelope or b"", keys, entry, name)
        if sequence != number or previous != (digests[-1] if digests else ""):
            raise DistrustError(f"{entry}: an entry of another place or chain; bring back the original")
        if not _is_allowed(Ledger(name, moves, digests), move):
            raise DistrustError(f"{entry}: moves {move.alias} to version {move.version} against the rules")
        moves.append(move)
        digests.append(bytes_digest(envelope or b""))
    return Ledger(name, tuple(moves), tuple(digests))


def append(store: Store, keys: Keyring, ledger: Ledger, move: Move) -> bool:
    """Write the next entry; False if another process wrote one of that number first: read again, then try again."""
    sequence = len(ledger.moves) + 1
    version = move.made or ledger.versions[move.version]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": f"{ledger.name}:{move.version}", "digest": {"sha256": version.digest}}],
        "predicateType": f"{ENTRY}v{FORMAT}",
        "predicate": {
            "sequence": sequence,
            "previous": ledger.digests[-1] if ledger.digests else "",
            **move.model_dump(mode="json"),
            "nonce": secrets.token_hex(16),
        },
    }
    keys.publish(store)
    return store.put_named(entry_name(ledger.name, sequence), keys.sign(statement))


def publish_dossier(store: Store, name: str, version: Version) -> list[str]:
    """Copy a version's dossier to `models/<name>/<version>/`, where existing files stay, and return the names there."""
    files = json.loads(store.get_object(version.dossier))
    for file, digest in files.items():
        store.put_named(dossier_name(name, version.number, file), store.get_object(digest))
    return [dossier_name(name, version.number, file) for file in files]


def dossier_name(name: str, version: int, file: str) -> str:
    return f"{MODELS}/{name}/{version}/{file}"


def fetch_model(store: Store, keys: Keyring, spec: str, dest: Path) -> None:
    """Write a registered model's files as the folder `dest`, every signature and digest verified.

    Args:
        store: store of the model.
        keys: trusted keys.
        spec: `NAME`, `NAME@ALIAS` or `NAME:VERSION`.
        dest: an empty folder, or a path that does not exist yet.

    Raises:
        InputError: no such model is registered.
        HardcaseError: the stored model or its record is damaged.
    """
    version = find_version(store, keys, spec)
    statement = keys.open_envelope(store.get_object(version.statement), f"statement {version.statement}")
    if statement["subject"][0]["digest"]["sha256"] != version.digest:
        raise DistrustError(f"statement {version.statement}: of another model than {spec}; bring back the original")
    fetch_folder(store, version.digest, dest)


def find_version(store: Store, keys: Keyring, spec: str) -> Version:
    """Return the version that a text names.

    Args:
        store: store of the ledger.
        keys: trusted keys.
        spec: `NAME` (its champion), `NAME@ALIAS` or `NAME:VERSION`.

    Raises:
        InputError: no such model is registered.
        DistrustError: the ledger is damaged.
    """
    ledger = read_ledger(store, split_spec(spec), keys)
    if not ledger.moves:
        known = ", ".join(list_models(store)) or "none; run `hardcase run` first"
        raise InputError(f"model {spec!r}: not registered in {store.uri}; these are: {known}")
    return ledger.find(spec)


def now_utc() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def entry_name(name: str, sequence: int) -> str:
    return f"{MODELS}/{name}/ledger/{sequence:06}.dsse.json"


def _is_allowed(ledger: Ledger, move: Move) -> bool:
    """Return whether a move makes the next version, as the gate judged it, or moves `champion` to an existing one.

    A rollback restores an earlier champion, a promotion any other version.
    """
    if move.made is None:
        champions = [version.number for version in ledger.champions]
        allowed = set(ledger.versions) - set(champions) if move.promotion else set(champions[:-1])
        return move.alias == CHAMPION and move.version in allowed
    if move.promotion:
        return False
    alias = CHAMPION if move.made.verdict == "promoted" else CHALLENGER
    return move.version == move.made.number == len(ledger.versions) + 1 and move.alias == alias


def _open_entry(envelope: bytes, keys: Keyring, entry: str, name: str) -> tuple[int, str, Move]:
    statement = keys.open_envelope(envelope, entry)
    try:
        check_type(statement["predicateType"], ENTRY, FORMAT, entry)
        predicate: Mapping[str, Any] = statement["predicate"]
        move = Move.model_validate({key: predicate[key] for key in predicate if key not in ("sequence", "previous")})
        if statement["subject"][0]["name"] != f"{name}:{move.version}":
            raise ValueError("an entry of another model")
        return predicate["sequence"], predicate["previous"], move
    except (KeyError, IndexError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        message = f"{entry}: signed, but not an entry of the ledger of {name}; bring back the original"
        raise DistrustError(message) from error
