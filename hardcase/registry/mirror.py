"""MLflow's models, versions, tags and aliases, showing what the ledger says; written anew from it at any time.

MLflow is a database of this machine or a server that several writers reach at once. It numbers versions in the order
they come and has no transactions across requests, so writers take turns (`_turn`), and each looks, does what is
missing, and looks again until nothing is. What a killed one left half done, the next one finishes. A turn may be taken
from a writer that is only slow, and it comes out right without: the ledger only grows and is read after MLflow, so that
what MLflow shows and the ledger lacks is not merely newer; versions are made empty and given tags that never change;
whoever set an alias by an older ledger finds out when reading it again.

MLflow takes seconds to import and is imported only where there is something to show or to compare.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from hardcase.errors import HardcaseError, InputError
from hardcase.registry.ledger import CHALLENGER, CHAMPION, Ledger, Version, read_verdict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Two minutes seven times over is MLflow's own; nobody is to wait that long for what only shows.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
# How long a turn may stand still until another writer takes it: its owner was killed.
SECONDS_STILL = 10.0
# How often to look again after one: who took a turn may have written the same meanwhile.
REFUSALS: Final = 5
# Of a model: sha256 of the newest entry that MLflow shows.
SHOWN: Final = "ledger"
TAGS: Final = [name for name in Version.model_fields if name != "number"]
logger = logging.getLogger(__name__)


class UnshownError(HardcaseError):
    """MLflow does not answer, or refuses; the ledger is whole without it."""


@dataclass(frozen=True)
class Shown:
    """What MLflow shows under a model's name.

    Attributes:
        name: of the model.
        names: all that begin with it.
        tags: of the model; None if there is no such model.
        aliases: of the model.
        versions: by number: where its files are said to lie, and its tags.
    """

    name: str
    names: set[str] = field(default_factory=set)
    tags: Mapping[str, str] | None = None
    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, tuple[str, dict[str, str]]] = field(default_factory=dict)

    def foreign(self, ledger: Ledger) -> list[int]:
        """The versions that are not this ledger's, or say otherwise; users may have added tags of their own."""
        return sorted(n for n, (source, tags) in self.versions.items() if _foreign(ledger, n, source, tags))


class Mirror:
    """MLflow's database, opened on first use and made on first writing, or its server.

    Args:
        tracking_uri: `sqlite:///` and an absolute path, or `http://…`, `https://…`; MLflow's own variables say who asks
            a server (`MLFLOW_TRACKING_TOKEN`, or `…_USERNAME` and `…_PASSWORD`).

    Raises:
        InputError: another kind of registry.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri
        self.database: Path | None = None
        if tracking_uri.startswith("sqlite:////"):
            self.database = Path(tracking_uri.removeprefix("sqlite:///")).resolve()
            self.uri = f"sqlite:///{self.database}"
        elif not tracking_uri.startswith(("http://", "https://")):
            raise InputError(f"registry {tracking_uri}: name sqlite:////absolute/path, http://… or https://…")
        elif urlsplit(tracking_uri).username is not None:
            raise InputError(
                f"registry {urlsplit(tracking_uri).hostname}: a password in its address would be shown with every run; "
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )

    def show(self, read: Callable[[], Ledger], store: str) -> None:
        """Let MLflow say what the ledger says.

        Versions there that are not the ledger's (of another store, or made by hand) are kept under another name.

        Args:
            read: gives the ledger of one model.
            store: URI to name as the place of the files.

        Raises:
            UnshownError: MLflow cannot be read or written.
        """
        self._make_database()
        name, refused = read().name, 0
        with self._turn(name) as renew:
            while True:
                shown = self._look(name)
                ledger = read()
                try:
                    with self._asking():
                        if not self._mend(ledger, shown, store, renew):
                            return
                except UnshownError:
                    refused += 1
                    if refused == REFUSALS:
                        raise

    def differences(self, ledger: Ledger) -> list[str]:
        """What MLflow says other than the ledger, as sentences; nothing where there is no database.

        That it does not show the newest entries yet is no difference; it is logged.

        Raises:
            UnshownError: MLflow cannot be read.
        """
        if self.database is not None and not self.database.is_file():
            return []
        shown = self._look(ledger.name)
        found = [f"version {number} in MLflow is not the ledger's" for number in shown.foreign(ledger)]
        newest = (shown.tags or {}).get(SHOWN, "")
        if newest and newest not in ledger.digests:
            lacking = f"MLflow shows entry {newest[:12]}, which the ledger lacks: its end was cut off"
            return [*found, f"{lacking}, or this is the ledger of another store"]
        entries = ledger.digests.index(newest) + 1 if newest else 0
        if entries < len(ledger.moves):
            logger.warning(
                "registry %s: shows %d of %d entries of %s; `hardcase audit %s --rebuild` shows all",
                *(self.uri, entries, len(ledger.moves), ledger.name, ledger.name),
            )
        # A writer that was killed has set the aliases of one of these.
        since = [Ledger(ledger.name, ledger.moves[:end]).aliases for end in range(entries, len(ledger.moves) + 1)]
        for alias in (CHALLENGER, CHAMPION):
            there, here = shown.aliases.get(alias), ledger.aliases.get(alias)
            if shown.tags is not None and there not in [aliases.get(alias) for aliases in since]:
                ours, theirs = (f"version {place}" if place else "nothing" for place in (here, there))
                found.append(
                    f"alias {alias} was moved outside the gate: it names {theirs} in MLflow, by the ledger {ours}"
                )
        return found

    def _look(self, name: str) -> Shown:
        """Names first: a model renamed since then frees no name that was taken, so that only one writer renames it."""
        with self._asking():
            client = self._client
            models = {model.name: model for model in client.search_registered_models(f"name LIKE '{name}%'", 1000)}
            if name not in models:
                return Shown(name, set(models))
            versions = client.search_model_versions(f"name='{name}'", max_results=10_000)
        return Shown(
            name,
            set(models),
            models[name].tags,
            {alias: int(number) for alias, number in models[name].aliases.items()},
            {int(each.version): (str(each.source), dict(each.tags)) for each in versions},
        )

    def _mend(self, ledger: Ledger, shown: Shown, store: str, renew: Callable[[str], object]) -> bool:
        """Do what is missing, and say whether anything was."""
        name, client, mended = ledger.name, self._client, False
        gaps = shown.versions and max(shown.versions) > len(shown.versions)  # of deleted ones: never numbered again
        if gaps or shown.foreign(ledger):
            other = next(place for n in range(1, 10**6) if (place := f"{name}.{n}") not in shown.names)
            client.rename_registered_model(name, other)
            logger.warning("registry %s: its %s is not the store's; renamed to %s", self.uri, name, other)
            shown = Shown(name)
        if shown.tags is None:
            about = f"What the signed ledger in {store} says; `hardcase audit {name}` proves it."
            client.create_registered_model(name, description=about)
        for number in range(len(shown.versions) + 1, len(ledger.versions) + 1):
            # Empty, as another writer may have taken the number meanwhile: then it is kept for the ledger's next.
            mended = True
            renew(f"makes version {number}")
            if int(client.create_model_version(name, source=_source(ledger)).version) != number:
                return True
        for number, version in ledger.versions.items():
            _, there = shown.versions.get(number, ("", {}))
            if missing := {key: tag for key, tag in _tags(version).items() if key not in there}:
                mended = True
                renew(f"writes version {number}")
            for key, tag in missing.items():
                client.set_model_version_tag(name, str(number), key, tag)
        for alias in (CHAMPION, CHALLENGER):
            number = ledger.aliases.get(alias, 0)
            if number == shown.aliases.get(alias, 0):
                continue
            mended = True
            if number:
                client.set_registered_model_alias(name, alias, str(number))
            else:
                client.delete_registered_model_alias(name, alias)
        if (shown.tags or {}).get(SHOWN) != ledger.digests[-1]:
            mended = True
            client.set_registered_model_tag(name, SHOWN, ledger.digests[-1])
        return mended

    @cached_property
    def _client(self) -> "MlflowClient":
        if self.database is not None:
            # On a file of another kind MLflow tries again for minutes.
            with self.database.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise ValueError("not an SQLite database; bring it back or remove it")
        return _mlflow_client(self.uri)

    @contextmanager
    def _turn(self, name: str) -> Iterator[Callable[[str], object]]:
        """Be the only writer, by the one thing that MLflow lets only one do: to make a model of some name.

        Yields:
            What tells the others that its owner is alive, to be called more often than they wait.
        """
        turn, seen, since = f"{name}.writing", 0, time.monotonic()
        with self._asking():
            client = self._client
            while not _done(lambda: client.create_registered_model(turn), unless="RESOURCE_ALREADY_EXISTS"):
                for model in client.search_registered_models(f"name='{turn}'"):
                    if (changed := model.last_updated_timestamp) != seen:
                        seen, since = changed, time.monotonic()
                    elif time.monotonic() - since > SECONDS_STILL:
                        logger.warning(
                            "registry %s: a writer of %s was stopped halfway; finishing its work", self.uri, name
                        )
                        _done(lambda: client.delete_registered_model(turn), unless="RESOURCE_DOES_NOT_EXIST")
                time.sleep(0.3)
        try:
            yield lambda what: _done(
                lambda: client.update_registered_model(turn, what), unless="RESOURCE_DOES_NOT_EXIST"
            )
        finally:
            # Where it fails, others wait a while and take it.
            with suppress(Exception):
                client.delete_registered_model(turn)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Any failure of MLflow as an error that says that nothing is lost."""
        try:
            yield
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rpartition("Caused by ")[2].rstrip(")")
            raise UnshownError(
                f"registry {self.uri}: {reason}; the ledger is whole without it, the next registration or "
                "`hardcase audit NAME --rebuild` lets MLflow show it"
            ) from error

    def _make_database(self) -> None:
        """Make the tables under another name first: MLflow does not finish those of a process that was killed."""
        if self.database is None or self.database.is_file():
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with self.database.with_name(f".{self.database.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self.database.is_file():
                return
            draft = self.database.with_name(f".{self.database.name}.draft")
            for path in (draft, Path(f"{draft}-journal")):
                path.unlink(missing_ok=True)
            _mlflow_client(f"sqlite:///{draft}").search_registered_models(max_results=1)
            draft.replace(self.database)


def _mlflow_client(uri: str) -> "MlflowClient":
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri, registry_uri=uri)


def _done(request: Callable[[], object], unless: str) -> bool:
    """Whether it was done; MLflow's error of that code is a no."""
    from mlflow.exceptions import MlflowException

    try:
        request()
    except MlflowException as error:
        if error.error_code != unless:
            raise
        return False
    return True


def _source(ledger: Ledger) -> str:
    """Where MLflow is told that files lie: the same for all versions, as a number may become another version's.

    A server takes no path of a machine, and a store may move; the first entry tells one ledger from another.
    """
    return f"hardcase://{ledger.digests[0]}/{ledger.name}"


def _tags(version: Version) -> dict[str, str]:
    tags = version.model_dump(mode="json", include=set(TAGS) - {"reasons"})
    return {**tags, "reasons": json.dumps(version.reasons, ensure_ascii=False)}


def _foreign(ledger: Ledger, number: int, source: str, tags: Mapping[str, str]) -> bool:
    """Whether a version is not the ledger's: it says otherwise, or says less and was made elsewhere."""
    said = {key: read_verdict(value) if key == "verdict" else value for key, value in tags.items() if key in TAGS}
    right = _tags(ledger.versions[number]) if number in ledger.versions else {}
    if source == _source(ledger):
        return not said.items() <= right.items()
    return said != right or not right
