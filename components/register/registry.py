"""The registry: MLflow's models, versions, tags and aliases in one SQLite file; their files in the object store.

A version is one judgement of one model. It is written in one transaction with all its tags and never rewritten, so that
what a champion was once measured against stays on record; only aliases move. MLflow takes seconds to import and is
imported only where there is a database to open.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hardcase.config import RegisterConfig
from hardcase.data.store import Store, local_path, open_store
from hardcase.errors import HardcaseError, InputError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
SPEC: Final = re.compile(rf"(?P<name>{RegisterConfig.NAME})(?:@(?P<alias>[\w-]+)|:(?P<version>[0-9]{{1,9}}))", re.ASCII)
SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """What a run is measured against, fixed at its start.

    Attributes:
        champion: version to beat; empty for none.
        reference: sha256 of the evaluation that drift compares with; empty for none.
    """

    champion: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Version:
    """A registered version: its number, its tags, and the URI of the store that keeps its files.

    The tags: `digest` (of the model's folder), `evaluation` (sha256 of the table), `fingerprint` (of source,
    configuration, seed and code), `reference` (number of the version it was judged against, or empty),
    `reference_evaluation` (what drift compared with, or empty), `verdict`, `reasons` (JSON).
    """

    number: int
    tags: Mapping[str, str]
    store: str

    def __getitem__(self, tag: str) -> str:
        return self.tags.get(tag, "")


@dataclass(frozen=True)
class _Entry:
    """A registered model: its versions, the newest first, and where its aliases point."""

    versions: Sequence[Version]
    aliases: Mapping[str, int]

    def version(self, number: int | None) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)

    @property
    def champion(self) -> Version | None:
        return self.version(self.aliases.get(CHAMPION))

    def reference(self, champion: Version | None, fingerprint: str) -> str:
        others = (version for version in self.versions if version["fingerprint"] != fingerprint)
        before = champion or next(others, None)
        return before["evaluation"] if before else ""


class Registry:
    """One database and the store beside it; opened on first use, made on first writing.

    Args:
        tracking_uri: `sqlite:///` and an absolute path.
        store: URI of the object store.

    Raises:
        InputError: another kind of database.
    """

    def __init__(self, tracking_uri: str, store: str) -> None:
        if not tracking_uri.startswith("sqlite:////"):
            raise InputError(f"registry {tracking_uri}: this version keeps it in SQLite; name sqlite:////absolute/path")
        self.database = Path(tracking_uri.removeprefix("sqlite:///"))
        self._store_uri = store

    def pin(self, name: str, fingerprint: str) -> Pin:
        """What a run of this fingerprint is measured against.

        The champion and its evaluation; without a champion, the evaluation of the newest version of another
        fingerprint. Where this fingerprint has been judged and nothing changed since, the same again, so that the same
        run has the same parameters.
        """
        if not self.database.is_file():
            return Pin()
        entry = self._entry(name)
        champion = entry.champion
        if champion and champion["fingerprint"] == fingerprint:
            return Pin(champion["reference"], champion["reference_evaluation"])
        against = str(champion.number) if champion else ""
        for own in entry.versions:
            if own["fingerprint"] == fingerprint and own["reference"] == against:
                return Pin(against, own["reference_evaluation"])
        return Pin(against, entry.reference(champion, fingerprint))

    def evaluation(self, name: str, version: str) -> bytes:
        """The Parquet table by which a version was judged.

        Raises:
            HardcaseError: no such version, or its table is not in the store as it was.
        """
        found = self._entry(name).version(int(version)) if self.database.is_file() else None
        mend = "bring it back, or let the alias `champion` name a version that is whole, and run again"
        if found is None:
            raise HardcaseError(f"champion {name}:{version} is not in {self.database}; {mend}")
        if not SHA256.fullmatch(found["evaluation"]):
            raise HardcaseError(f"champion {name}:{version} carries no evaluation to compare with; {mend}")
        try:
            return self._store_of(found).get_object(found["evaluation"])
        except HardcaseError as error:
            raise HardcaseError(f"champion {name}:{version}: its evaluation is lost: {error}; {mend}") from error

    def register(
        self, name: str, model: Path, evaluation: Path, against: str, fingerprint: str, judgement: Mapping[str, str]
    ) -> Version:
        """Keep a model and the table it was judged by as a version; the one that is there if this was done before.

        Args:
            name: of the registered model.
            model: its folder.
            evaluation: its table.
            against: the version it was judged against, or empty.
            fingerprint: of source, configuration, seed and code.
            judgement: tags `verdict` and `reasons`.
        """
        digest, table = self._store.put_folder(model), self._store.put_object(evaluation.read_bytes())
        self._make_database()
        entry = self._entry(name)
        identity = {"digest": digest, "fingerprint": fingerprint, "reference": against, "evaluation": table}
        for version in entry.versions:
            if all(version[tag] == value for tag, value in identity.items()):
                return version
        champion = entry.version(int(against)) if against else None
        reference = entry.reference(champion, fingerprint)
        tags = {**identity, "reference_evaluation": reference, **judgement}
        if not self._client.search_registered_models(f"name='{name}'"):
            self._client.create_registered_model(name)
        made = self._client.create_model_version(name, source=f"{self._store.uri}#{digest}", tags=tags)
        return Version(int(made.version), tags, self._store.uri)

    def point(self, name: str, alias: str, version: int) -> None:
        """Let an alias name a version; a champion is no challenger any more."""
        self._client.set_registered_model_alias(name, alias, str(version))
        if alias == CHAMPION and self._entry(name).aliases.get(CHALLENGER) == version:
            self._client.delete_registered_model_alias(name, CHALLENGER)

    def check(self, registered: Mapping[str, Any]) -> None:
        """Find that what `register.json` names is here as it was; aliases may have moved on since.

        Raises:
            HardcaseError: the version or one of its files is missing or another.
        """
        name, number = registered["name"], registered["version"]
        found = self._entry(name).version(number) if self.database.is_file() else None
        if found is None or any(found[tag] != registered[tag] for tag in ("digest", "verdict")):
            raise HardcaseError(f"{name}:{number} is not in {self.database} as it was; run again to register it anew")
        store = self._store_of(found)
        listing = json.loads(store.get_object(found["digest"]))
        for digest in (found["evaluation"], *listing.values()):
            store.check_object(digest)

    def fetch_model(self, spec: str, dest: Path) -> None:
        """Write a registered model's files as the folder `dest`, every digest verified.

        Args:
            spec: `name@alias` or `name:version`.
            dest: a folder that is empty or not there yet.

        Raises:
            InputError: the registry holds no such model.
            HardcaseError: its files are not in the store as they were.
        """
        found = self._find(spec)
        digest = found["digest"]
        if not SHA256.fullmatch(digest):
            raise InputError(f"model {spec!r}: it was not registered by hardcase and carries no digest; name another")
        draft = dest.with_name(f".{dest.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            self._store_of(found).get_folder(digest, draft)
            draft.replace(dest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _find(self, spec: str) -> Version:
        if (parts := SPEC.fullmatch(spec)) is None:
            raise InputError(f"model {spec!r}: no such folder; name a folder, NAME@ALIAS or NAME:VERSION")
        if not self.database.is_file():
            raise InputError(f"model {spec!r}: nothing is registered in {self.database} yet; run `hardcase run` first")
        entry = self._entry(parts["name"])
        if not entry.versions:
            names = ", ".join(sorted(model.name for model in self._client.search_registered_models())) or "none"
            raise InputError(f"model {spec!r}: not registered; these are: {names}")
        number = entry.aliases.get(parts["alias"]) if parts["alias"] else int(parts["version"])
        if (found := entry.version(number)) is None:
            aliases = ", ".join(f"@{alias} (:{place})" for alias, place in sorted(entry.aliases.items())) or "no alias"
            raise InputError(
                f"model {spec!r}: not registered; {parts['name']} has {aliases} and the versions "
                f"{', '.join(f':{version.number}' for version in reversed(entry.versions))}"
            )
        return found

    def _entry(self, name: str) -> _Entry:
        if not re.fullmatch(RegisterConfig.NAME, name):
            raise InputError(f"model name {name!r}: not letters, digits and `._-`; mend `register.name`")
        models = self._client.search_registered_models(f"name='{name}'")
        found = self._client.search_model_versions(f"name='{name}'") if models else []
        versions = [Version(int(v.version), dict(v.tags), (v.source or "").rpartition("#")[0]) for v in found]
        versions.sort(key=lambda version: version.number, reverse=True)
        aliases = {alias: int(number) for model in models for alias, number in model.aliases.items()}
        return _Entry(versions, aliases)

    def _store_of(self, version: Version) -> Store:
        """Where the version was kept, be it another store than today's; a folder may have been moved with its home."""
        kept = version.store.startswith("s3://") or (version.store and local_path(version.store).is_dir())
        return open_store(version.store) if kept else self._store

    @cached_property
    def _store(self) -> Store:
        return open_store(self._store_uri)

    @cached_property
    def _client(self) -> "MlflowClient":
        # On a file of another kind MLflow tries again for minutes.
        with self.database.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise HardcaseError(f"registry {self.database}: not an SQLite database; bring it back or remove it")
        client = _mlflow_client(self.database)
        try:
            client.search_registered_models(max_results=1)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise HardcaseError(f"registry {self.database}: MLflow cannot read it: {reason}; bring it back") from error
        return client

    def _make_database(self) -> None:
        """Make the tables under another name first: MLflow does not finish those of a process that was killed."""
        if self.database.is_file():
            return
        draft = self.database.with_name(f".{self.database.name}.draft")
        self.database.parent.mkdir(parents=True, exist_ok=True)
        for path in (draft, Path(f"{draft}-journal")):
            path.unlink(missing_ok=True)
        _mlflow_client(draft).search_registered_models(max_results=1)
        draft.replace(self.database)


def _mlflow_client(database: Path) -> "MlflowClient":
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = f"sqlite:///{database}"
    return MlflowClient(uri, registry_uri=uri)


def as_tag(reasons: Sequence[str]) -> str:
    """Sentences in the form of the tag `reasons`."""
    return json.dumps(list(reasons), ensure_ascii=False)
