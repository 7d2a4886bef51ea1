"""MLflow's models, versions, tags and aliases, showing what the ledger says; written anew from it at any time.

MLflow takes seconds to import and is imported only where there is something to show or to compare.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hardcase.audit.ledger import CHALLENGER, CHAMPION, Ledger, Version
from hardcase.errors import HardcaseError, InputError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
logger = logging.getLogger(__name__)


class Mirror:
    """MLflow's database; opened on first use, made on first writing.

    Args:
        tracking_uri: `sqlite:///` and an absolute path.

    Raises:
        InputError: another kind of database.
    """

    def __init__(self, tracking_uri: str) -> None:
        if not tracking_uri.startswith("sqlite:////"):
            raise InputError(f"registry {tracking_uri}: this version keeps it in SQLite; name sqlite:////absolute/path")
        self.database = Path(tracking_uri.removeprefix("sqlite:///")).resolve()

    def show(self, read: Callable[[], Ledger], store: str) -> None:
        """Let MLflow say what the ledger says.

        Versions there that are not the ledger's (of another store, or made by hand) are kept under another name.

        Args:
            read: gives the ledger of one model; called when no other process can show a later one.
            store: URI to name as the source of files.

        Raises:
            HardcaseError: the database cannot be read.
        """
        with self._locked():
            self._make_database()
            ledger = read()
            name, client = ledger.name, self._client
            shown = self._versions(name)
            if any(not _same(ledger, number, tags) for number, tags in shown.items()):
                other = next(f"{name}.{n}" for n in range(1, 10**6) if not self._models(f"{name}.{n}"))
                logger.warning("registry %s: its %s is not the store's; renamed to %s", self.database, name, other)
                client.rename_registered_model(name, other)
                shown = {}
            if not self._models(name):
                client.create_registered_model(name)
            for number, version in ledger.versions.items():
                if number not in shown:
                    client.create_model_version(name, source=f"{store}#{version.digest}", tags=_tags(version))
            there = self._aliases(name)
            for alias in (CHAMPION, CHALLENGER):
                if (place := ledger.aliases.get(alias)) is None and alias in there:
                    client.delete_registered_model_alias(name, alias)
                elif place is not None and there.get(alias) != place:
                    client.set_registered_model_alias(name, alias, str(place))

    def differences(self, ledger: Ledger) -> list[str]:
        """What MLflow says other than the ledger, as sentences; nothing where there is no database.

        Raises:
            HardcaseError: the database cannot be read.
        """
        if not self.database.is_file():
            return []
        shown, aliases = self._versions(ledger.name), self._aliases(ledger.name)
        wrong = [number for number, tags in shown.items() if not _same(ledger, number, tags)]
        found = [f"version {number} in MLflow is not the ledger's" for number in sorted(wrong)]
        for alias in sorted({*aliases, *ledger.aliases}):
            there, here = aliases.get(alias), ledger.aliases.get(alias)
            if there != here and alias in (CHAMPION, CHALLENGER) and shown:
                ours, theirs = (f"version {place}" if place else "nothing" for place in (here, there))
                found.append(
                    f"alias {alias} was moved outside the gate: it names {theirs} in MLflow, by the ledger {ours}"
                )
        return found

    def _models(self, name: str) -> list[object]:
        return list(self._client.search_registered_models(f"name='{name}'"))

    def _versions(self, name: str) -> dict[int, dict[str, str]]:
        found = self._client.search_model_versions(f"name='{name}'", max_results=10_000) if self._models(name) else []
        return {int(version.version): dict(version.tags) for version in found}

    def _aliases(self, name: str) -> dict[str, int]:
        models = self._client.search_registered_models(f"name='{name}'")
        return {alias: int(number) for model in models for alias, number in model.aliases.items()}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process writes at a time: MLflow numbers versions in the order they come."""
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with self.database.with_name(f".{self.database.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

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


def _tags(version: Version) -> dict[str, str]:
    tags = version.model_dump(mode="json", exclude={"number", "reasons"})
    return {**tags, "reasons": json.dumps(version.reasons, ensure_ascii=False)}


def _same(ledger: Ledger, number: int, tags: Mapping[str, str]) -> bool:
    """Whether a version says what the ledger says of it; users may have added tags of their own."""
    return number in ledger.versions and _tags(ledger.versions[number]).items() <= tags.items()
