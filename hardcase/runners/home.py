"""`$HARDCASE_HOME`: the folder of the store, the runs, the cache and the registry of one machine."""

import getpass
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardcase.database import database_uri
from hardcase.errors import InputError
from hardcase.lifetime import hold_lock, remove_abandoned
from hardcase.provenance.signing import (
    SIGNING_FILE,
    Keyring,
    list_trusted,
    make_key,
    open_keyring,
    read_public_keys,
    read_stored_keys,
)
from hardcase.store.store import open_store

logger = logging.getLogger(__name__)
# No telemetry, no bars but ours.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


def name_of_user() -> str:
    """Return who acts: `HARDCASE_WHO`, or the user of this process, by number where that has no name."""
    if who := os.environ.get("HARDCASE_WHO"):
        return who
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises the latter
        return f"uid {os.getuid()}"


@dataclass(frozen=True)
class Home:
    """The home folder `root`; `uri` is the object store's, if it is not in the folder."""

    root: Path
    uri: str = ""

    @classmethod
    def here(cls, store: str | None = None) -> "Home":
        """Return the home in `$HARDCASE_HOME` or `./.hardcase`; `store` or `$HARDCASE_STORE` may name its store."""
        root = Path(os.environ.get("HARDCASE_HOME") or ".hardcase").absolute()
        uri = store or os.environ.get("HARDCASE_STORE") or ""
        if odd := [path for path in (str(root), uri) if not path.isprintable()]:
            raise InputError(f"{odd[0]!a}: not printable; choose a path without control characters")
        return cls(root, uri)

    @classmethod
    def of_latest(cls, store: str | None = None) -> "Home":
        """Return the home for commands that only read: unless a store is named, the store is that of the latest run."""
        home = cls.here(store)
        summary = home.root / "latest" / "summary.json"
        if home.uri or not summary.is_file():
            return home
        uri = json.loads(summary.read_text(encoding="utf-8")).get("store", "")
        return cls(home.root, uri if uri.startswith("s3://") else "")

    @property
    def store(self) -> str:
        """URI of the object store."""
        return self.uri or (self.root / "store").as_uri()

    @property
    def tracking_uri(self) -> str:
        """URI of MLflow's server, by its own variable, or of a database in the folder."""
        return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(self.root / "mlflow.db")

    @property
    def keys(self) -> Path:
        """Folder of the signing key that the first run creates, and of other trusted public keys."""
        return self.root / "keys"

    def signing_environment(self) -> dict[str, str]:
        """Return the variable by which a step signs; a missing key is created."""
        if not (signing := os.environ.get("HARDCASE_SIGNING_KEY")):
            make_key(self.keys)
            signing = str(self.keys / SIGNING_FILE)
        return {"HARDCASE_SIGNING_KEY": signing}

    def keyring(self) -> Keyring:
        """Return the keyring that signs."""
        return open_keyring(self.signing_environment()["HARDCASE_SIGNING_KEY"], list_trusted(self.root))

    def verifier(self, named: Sequence[Path] = ()) -> Keyring:
        """Return a keyring that verifies: the keys named, else those this machine trusts, else those in the store."""
        if named:
            return Keyring(read_public_keys(named))
        if os.environ.get("HARDCASE_SIGNING_KEY") or (self.keys / SIGNING_FILE).is_file():
            return self.keyring()
        keys = read_public_keys(path for path in list_trusted(self.root) if path.exists())
        if not keys and (keys := read_stored_keys(open_store(self.store, create=False))):
            logger.warning(
                "no key of this machine's own: trusting %s, found in the store; put the right one into %s",
                ", ".join(keyid[:12] for keyid in keys),
                self.keys,
            )
        return Keyring(keys)

    @property
    def runs(self) -> Path:
        """Folder with one folder for each run."""
        return self.root / "runs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other run works in this home, and keep others out."""
        self.root.mkdir(parents=True, exist_ok=True)
        (lock := self.root / "lock").touch()
        with ExitStack() as held:
            try:
                held.enter_context(hold_lock(lock, blocking=False))
            except BlockingIOError:
                logger.warning("another run works in %s; waiting for it to end", self.root)
                held.enter_context(hold_lock(lock))
            remove_abandoned(self.root)
            yield

    def new_run(self, fingerprint: str, newest: bool = True) -> Path:
        """Create a run folder, named for the time (UTC) and what is run; if `newest`, `latest` points to it."""
        while True:
            folder = self.runs / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{fingerprint[:8]}"
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                time.sleep(0.2)
        if newest:
            draft = self.root / ".latest.draft"
            draft.unlink(missing_ok=True)
            draft.symlink_to(folder.relative_to(self.root))
            draft.replace(self.root / "latest")
        return folder

    def run_folder(self, name: str) -> Path:
        """Return the folder of the run `name`, or of `latest`."""
        folder = self.root / "latest" if name == "latest" else self.runs / name
        if not name or not folder.is_dir():
            raise InputError(f"run {name!r}: not in {self.runs}; `hardcase runs` lists them")
        return folder.resolve()

    def summaries(self) -> list[dict[str, Any]]:
        """Return the summaries of all runs, the newest first; a killed run is `unfinished`."""
        summaries = []
        for folder in sorted(self.runs.glob("*/"), reverse=True):
            path = folder / "summary.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            summaries.append({"run_id": folder.name, "status": "unfinished", **known})
        return summaries
