"""Mirror of the ledger in MLflow: models, versions, tags and aliases, which can be rebuilt from the ledger at any time.

MLflow is a database of this machine or a server that several writers use at once. It numbers versions in the order in
which they arrive and has no transactions across requests. Each writer therefore looks, writes what is missing, and
looks again until nothing is missing; the next one completes what an interrupted one left. Writers need no lock:

1. The ledger only grows and is read after MLflow, so what MLflow shows and the ledger lacks is not merely newer.
2. Versions are created empty, and their tags never change. Of two writers that create a version at once, one gets the
   next number, which stays empty until the ledger's next version.
3. A writer that set an alias by an older ledger notices when it reads the ledger again.
4. MLflow refuses what another writer did first; the writer waits for a random time and looks again.

MLflow takes seconds to import and is imported only where there is something to mirror or to compare.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hardcase.addresses import split_url
from hardcase.database import database_path, database_uri
from hardcase.errors import HardcaseError, InputError
from hardcase.lifetime import hold_lock
from hardcase.registry.ledger import CHALLENGER, CHAMPION, Ledger, Version, read_verdict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # MLflow's own default is seven times two minutes, too long to wait for a mirror.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
REFUSALS: Final = 20  # after which a writer gives up; another one may have done each refused request first
LONGEST_WAIT: Final = 0.5  # seconds after a refusal
SHOWN: Final = "ledger"  # tag of a model: sha256 of the newest mirrored entry
TAGS: Final = [name for name in Version.model_fields if name != "number"]
logger = logging.getLogger(__name__)


class UnshownError(HardcaseError):
    """MLflow does not answer, or refuses a request. The ledger is complete without it."""


@dataclass(frozen=True)
class Shown:
    """State of a model in MLflow."""

    names: set[str] = field(default_factory=set)  # of all models that begin with its name
    tags: Mapping[str, str] | None = None  # None if there is no such model
    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, tuple[str, dict[str, str]]] = field(default_factory=dict)  # source and tags by number

    def foreign(self, ledger: Ledger) -> list[int]:
        """Return the versions that are not this ledger's or contradict it; tags of users do not count."""
        return sorted(n for n, (source, tags) in self.versions.items() if _foreign(ledger, n, source, tags))


class Mirror:
    """MLflow's database, created on the first write, or its server, whose credentials MLflow's own variables hold."""

    def __init__(self, tracking_uri: str) -> None:
        database = database_path(tracking_uri)
        self.database = database and database.resolve()
        self.uri = database_uri(self.database) if self.database else tracking_uri
        if self.database:
            return
        if not tracking_uri.startswith(("http://", "https://")):
            raise InputError(f"registry {tracking_uri}: name sqlite:////absolute/path, http://… or https://…")
        if split_url(tracking_uri) is None:
            raise InputError(f"registry {tracking_uri}: not a URL; name http://host:port or https://host")
        if "@" in tracking_uri:
            raise InputError(
                "MLFLOW_TRACKING_URI: a password in its address would be shown with every run; "
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )

    def check(self) -> None:
        """Refuse a database that cannot be opened or created. A server that does not answer costs no run."""
        if self.database is None:
            return
        nearest = next(path for path in (self.database, *self.database.parents) if path.exists())
        if (nearest == self.database) == nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise InputError(f"registry {self.uri}: {nearest} cannot be written; name another in MLFLOW_TRACKING_URI")
        if nearest == self.database:
            try:
                self._check_database()
            except (OSError, ValueError) as error:
                raise InputError(f"registry {self.uri}: {error}") from error

    def show(self, read: Callable[[], Ledger], store: str) -> None:
        """Write to MLflow what the ledger says.

        Versions in MLflow that are not the ledger's (of another store, or made by hand) stay under another name.

        Raises:
            UnshownError: MLflow cannot be read or written.
        """
        with self._requests():
            self._make_database()
        name, refusals = read().name, 0
        while True:
            shown = self._look(name)
            ledger = read()
            try:
                with self._requests():
                    if not self._complete(ledger, shown, store):
                        return
            except UnshownError:
                refusals += 1
                if refusals == REFUSALS:
                    raise
                time.sleep(random.random() * LONGEST_WAIT)

    def find_differences(self, ledger: Ledger) -> list[str]:
        """Return, as sentences, how MLflow contradicts the ledger; nothing where there is no database.

        Missing newest entries are not a contradiction; they are logged.

        Raises:
            UnshownError: MLflow cannot be read.
        """
        if self.database is not None and not self.database.is_file():
            return []
        shown = self._look(ledger.name)
        sentences = [f"version {number} in MLflow is not the ledger's" for number in shown.foreign(ledger)]
        newest = (shown.tags or {}).get(SHOWN, "")
        if newest and newest not in ledger.digests:
            lacking = f"MLflow shows entry {newest[:12]}, which the ledger lacks: its end was cut off"
            return [*sentences, f"{lacking}, or this is the ledger of another store"]
        entries = ledger.digests.index(newest) + 1 if newest else 0
        if entries < len(ledger.moves):
            logger.warning(
                "registry %s: shows %d of %d entries of %s; `hardcase audit %s --rebuild` shows all",
                *(self.uri, entries, len(ledger.moves), ledger.name, ledger.name),
            )
        # An interrupted writer has set the aliases of one of these.
        since = [Ledger(ledger.name, ledger.moves[:end]).aliases for end in range(entries, len(ledger.moves) + 1)]
        for alias in (CHALLENGER, CHAMPION):
            mirrored, recorded = shown.aliases.get(alias), ledger.aliases.get(alias)
            if shown.tags is not None and mirrored not in [aliases.get(alias) for aliases in since]:
                ours, theirs = (f"version {number}" if number else "nothing" for number in (recorded, mirrored))
                sentences.append(
                    f"alias {alias} was moved outside the gate: it names {theirs} in MLflow, by the ledger {ours}"
                )
        return sentences

    def _look(self, name: str) -> Shown:
        # Names first: a model renamed since then frees no name that was taken, so that only one writer renames it.
        with self._requests():
            client = self._client
            models = {model.name: model for model in client.search_registered_models(f"name LIKE '{name}%'", 1000)}
            if name not in models:
                return Shown(set(models))
            versions = client.search_model_versions(f"name='{name}'", max_results=10_000)
        return Shown(
            set(models),
            models[name].tags,
            {alias: int(number) for alias, number in models[name].aliases.items()},
            {int(version.version): (str(version.source), dict(version.tags)) for version in versions},
        )

    def _complete(self, ledger: Ledger, shown: Shown, store: str) -> bool:
        """Write what is missing and return whether anything was."""
        name, client = ledger.name, self._client
        gaps = shown.versions and max(shown.versions) > len(shown.versions)  # of deleted ones: never numbered again
        if gaps or shown.foreign(ledger):
            other = next(free for n in range(1, 10**6) if (free := f"{name}.{n}") not in shown.names)
            client.rename_registered_model(name, other)
            logger.warning("registry %s: its %s is not the store's; renamed to %s", self.uri, name, other)
            shown = Shown()
        if shown.tags is None:
            about = f"Mirror of the signed ledger in {store}; `hardcase audit {name}` verifies it."
            client.create_registered_model(name, description=about)
        unnumbered = range(len(shown.versions) + 1, len(ledger.versions) + 1)
        for number in unnumbered:
            # Empty, since another writer may take the number first; then it waits for the ledger's next version.
            if int(client.create_model_version(name, source=_source(ledger)).version) != number:
                return True
        untagged = [
            (str(number), key, tag)
            for number, version in ledger.versions.items()
            for key, tag in _tags(version).items()
            if number not in shown.versions or key not in shown.versions[number][1]
        ]
        for label, key, tag in untagged:
            client.set_model_version_tag(name, label, key, tag)
        moved = [alias for alias in (CHAMPION, CHALLENGER) if ledger.aliases.get(alias) != shown.aliases.get(alias)]
        for alias in moved:
            if alias in ledger.aliases:
                client.set_registered_model_alias(name, alias, str(ledger.aliases[alias]))
            else:
                client.delete_registered_model_alias(name, alias)
        behind = (shown.tags or {}).get(SHOWN) != ledger.digests[-1]
        if behind:
            client.set_registered_model_tag(name, SHOWN, ledger.digests[-1])
        return bool(unnumbered or untagged or moved or behind)

    @cached_property
    def _client(self) -> "MlflowClient":
        self._check_database()
        return _mlflow_client(self.uri)

    def _check_database(self) -> None:
        if self.database is not None:
            # MLflow retries a file of another kind for minutes.
            with self.database.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise ValueError("not an SQLite database; bring it back or remove it")

    @contextmanager
    def _requests(self) -> Iterator[None]:
        """Turn any failure of MLflow into an error that says that nothing is lost."""
        try:
            yield
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rpartition("Caused by ")[2].rstrip(")")
            raise UnshownError(
                f"registry {self.uri}: {reason}; the ledger is complete without it, and the next registration or "
                "`hardcase audit NAME --rebuild` mirrors it"
            ) from error

    def _make_database(self) -> None:
        """Make the tables under another name first, since MLflow never completes those of an interrupted process."""
        if self.database is None or self.database.is_file():
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        (lock := self.database.with_name(f".{self.database.name}.lock")).touch()
        with hold_lock(lock):
            if self.database.is_file():
                return
            draft = self.database.with_name(f".{self.database.name}.draft")
            for path in (draft, Path(f"{draft}-journal")):
                path.unlink(missing_ok=True)
            _mlflow_client(database_uri(draft)).search_registered_models(max_results=1)
            draft.replace(self.database)


def _mlflow_client(uri: str) -> "MlflowClient":
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri, registry_uri=uri)


def _source(ledger: Ledger) -> str:
    """Return the source of all versions in MLflow: equal for all, since a number may become another version's.

    A server accepts no local path, and a store may move. The first entry tells one ledger from another.
    """
    return f"hardcase://{ledger.digests[0]}/{ledger.name}"


def _tags(version: Version) -> dict[str, str]:
    tags = version.model_dump(mode="json", include=set(TAGS) - {"reasons"})
    return {**tags, "reasons": json.dumps(version.reasons, ensure_ascii=False)}


def _foreign(ledger: Ledger, number: int, source: str, tags: Mapping[str, str]) -> bool:
    """Return whether a version contradicts the ledger, or was made elsewhere and says less."""
    stated = {key: read_verdict(value) if key == "verdict" else value for key, value in tags.items() if key in TAGS}
    recorded = _tags(ledger.versions[number]) if number in ledger.versions else {}
    if source == _source(ledger):
        return not stated.items() <= recorded.items()
    return stated != recorded or not recorded
