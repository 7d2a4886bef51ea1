"""What every step does around its work when it runs in a process of its own, under kfp.local or in a pod.

It checks the files it is given against the sha256 and the signature in their metadata, and seals and signs those it
makes (KFP's cache knows artifacts by place, not by content). It keeps a private folder from which a stopped step goes
on, says its progress and its errors in a form the launcher reads, and never outlives the launcher.
"""

import ctypes
import fcntl
import json
import logging
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from components.notes import LAST_LINES, LastLines, Note, leave
from hardcase.audit.lineage import emit
from hardcase.audit.links import Link, open_link
from hardcase.audit.signing import DistrustError, Keyring, open_keyring
from hardcase.data.digest import bytes_digest, canonical_json, path_digest
from hardcase.errors import HardcaseError, InputError

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
PROGRESS_MARK = "::progress:: "
TRAIN_IMAGE = "hardcase/python-train:0.1.0"
LIGHT_IMAGE = "hardcase/python-light:0.1.0"
logger = logging.getLogger(__name__)


class Artifact(Protocol):
    """What is used of KFP's artifact."""

    name: str
    metadata: dict[str, Any]

    @property
    def path(self) -> str: ...


@contextmanager
def running(
    step: str,
    scratch: str,
    inputs: Mapping[str, Artifact],
    outputs: Mapping[str, Artifact],
    sources: Mapping[str, str] = MappingProxyType({}),
    **parameters: Any,
) -> Iterator[Path]:
    """Surround a step's work.

    Args:
        step: its name.
        scratch: folder of all private folders.
        inputs: artifacts that it reads, by name; checked.
        outputs: artifacts that it writes, by name; sealed and signed.
        sources: digests of what it takes in from outside, by name; filled in by the work itself.
        parameters: whatever else makes this work this work (configuration, seed, code).

    Yields:
        The private folder: the same one for the same work, empty the first time, gone after success.

    Raises:
        SystemExit: the work raised a `HardcaseError`; its exit code.
    """
    run, read = os.environ.get("HARDCASE_RUN", ""), dict[str, str]()
    with noted(step) as files, _refused_once(Path(scratch) / "refused" / f"{run}-{step}"):
        try:
            keys = keyring()
            materials = {name: verified(artifact, keys) for name, artifact in inputs.items()}
            read = _datasets(inputs, keys, parameters)
            files.update(_paths(read, inputs.values()))
            emit("START", run, step, read)
            digests = list(materials.values())
            work = bytes_digest(canonical_json({"step": step, "inputs": digests, **parameters}))
            with _private_folder(Path(scratch) / f"{step}-{work[:16]}") as folder:
                yield folder
            products = {name: path_digest(Path(artifact.path)) for name, artifact in outputs.items()}
            link = Link(step, {**materials, **sources}, products, parameters, circumstances()).signed(keys).decode()
            for name, artifact in outputs.items():
                artifact.metadata.update({"sha256": products[name], "link": link})
            wrote = {f"{step}.{name}": digest for name, digest in products.items()}
            files.update(_paths(wrote, outputs.values()))
            emit("COMPLETE", run, step, read, wrote)
        except Exception as error:
            emit("FAIL", run, step, read, error=_said(error))
            raise


@contextmanager
def noted(step: str) -> Iterator[dict[str, Path]]:
    """Surround what a process does for a step: its log, and its errors in the forms that others read.

    Args:
        step: its name.

    Yields:
        Files that it read or wrote, by `step.output`, filled in by the work.

    Raises:
        SystemExit: the work raised a `HardcaseError`; its exit code.
    """
    die_with_launcher()
    last, files = set_up_logging(), dict[str, Path]()
    try:
        yield files
    except HardcaseError as error:
        logger.exception("%s failed", step)
        leave(Note(step, error.exit_code, str(error), list(last.lines)), files)
        sys.exit(error.exit_code)
    except Exception as error:
        lines = [*last.lines, *"".join(traceback.format_exception(error)).splitlines()]
        leave(Note(step, 1, _said(error), lines[-LAST_LINES:]), files)
        raise
    leave(Note(step), files)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, HardcaseError) else "".join(traceback.format_exception_only(error)).strip()


@contextmanager
def _refused_once(sign: Path) -> Iterator[None]:
    """Refuse at once what was refused before in this run.

    A cluster tries a step again whatever it failed of (docs/kubeflow.md): the work of a lost pod goes on, but an input
    that is at fault stays so.
    """
    if sign.is_file():
        raise InputError(sign.read_text(encoding="utf-8"))
    try:
        yield
    except InputError as error:
        if os.environ.get("HARDCASE_RUN") and "HARDCASE_RUN_DIR" not in os.environ:
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.write_text(str(error), encoding="utf-8")
        raise


def place_of() -> tuple[str, str, str]:
    """Where this process is to work, by its environment: store, MLflow, scratch folder.

    Raises:
        InputError: it names no store.
    """
    if not (store := os.environ.get("HARDCASE_STORE")):
        raise InputError("no store: set HARDCASE_STORE to a folder or s3://bucket/prefix")
    scratch = os.environ.get("HARDCASE_SCRATCH", "/scratch")
    return store, os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{scratch}/mlflow.db", scratch


def sharded(step: str, shard: str) -> str:
    """The name of a step that is done in shards: `rollout-3-of-8`; of one that is not, the step's."""
    return step if shard == "1/1" else f"{step}-{shard.replace('/', '-of-')}"


def numbered(name: str, artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    """What the shards of a step made, by name."""
    return {sharded(name, f"{number}/{len(artifacts)}"): each for number, each in enumerate(artifacts, 1)}


def _datasets(inputs: Mapping[str, Artifact], keys: Keyring, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What is read, by the names that the steps that made it gave it."""
    found = dict([parameters["source"]]) if "source" in parameters else {}
    for artifact in inputs.values():
        link, digest = link_of(artifact, keys), artifact.metadata["sha256"]
        name = next(name for name, product in link.products.items() if product == digest)
        found[f"{link.step}.{name}"] = digest
    return found


def _paths(named: Mapping[str, str], artifacts: Iterable[Artifact]) -> dict[str, Path]:
    """Where what has these digests lies."""
    places = {artifact.metadata["sha256"]: Path(artifact.path) for artifact in artifacts}
    return {name: places[digest] for name, digest in named.items() if digest in places}


def keyring() -> Keyring:
    """What this process signs with and whom it trusts: `HARDCASE_SIGNING_KEY`, and folders in `HARDCASE_TRUSTED_KEYS`.

    Raises:
        HardcaseError: it was given no key.
    """
    if not (signing := os.environ.get("HARDCASE_SIGNING_KEY")):
        raise HardcaseError("no signing key: set HARDCASE_SIGNING_KEY to a private key in PEM, or awskms:ID")
    return _keyring(signing, os.environ.get("HARDCASE_TRUSTED_KEYS", ""))


@cache
def _keyring(signing: str, trusted: str) -> Keyring:
    return open_keyring(signing, [Path(place) for place in trusted.split(os.pathsep) if place])


def circumstances() -> dict[str, str]:
    """Where and of what this process runs, as far as its environment says."""
    names = ("run", "who", "commit", "clean", "image")
    return {name: os.environ[key] for name in names if os.environ.get(key := f"HARDCASE_{name.upper()}")}


def verified(artifact: Artifact, keys: Keyring) -> str:
    """The sha256 of the artifact's file or folder, found equal to the one in its metadata, and that signed.

    Raises:
        HardcaseError: it is missing or altered, or no step that is trusted made it.
    """
    path = Path(artifact.path)
    digest = path_digest(path) if path.exists() else "missing"
    if digest != artifact.metadata.get("sha256"):
        raise HardcaseError(f"{path}: artifact {artifact.name!r} is missing or altered; run again to make it anew")
    if digest not in link_of(artifact, keys).products.values():
        raise DistrustError(f"{path}: artifact {artifact.name!r} is not what its step signed; run again")
    return digest


def link_of(artifact: Artifact, keys: Keyring) -> Link:
    """The signed record of the step that made an artifact."""
    return open_link(artifact.metadata.get("link", "").encode(), keys, f"artifact {artifact.name!r}")


@contextmanager
def _private_folder(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The same work of a launcher just killed may still be dying.
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
        shutil.rmtree(folder)
    finally:
        os.close(handle)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_launcher() -> None:
    """End this process when the one that `HARDCASE_LAUNCHER_PID` names ends; and what it forks, when it ends."""
    # A worker that outlived its step would hold the lock on the private folder for ever.
    os.register_at_fork(after_in_child=die_with_parent)
    if not (launcher := os.environ.get("HARDCASE_LAUNCHER_PID")):
        return
    try:
        handle = os.pidfd_open(int(launcher))
    except ProcessLookupError:
        os._exit(1)
    poll = select.poll()
    poll.register(handle, select.POLLIN)

    def watch() -> None:
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


class _ProgressLines(logging.Handler):
    """Progress records as JSON lines on standard output, a few a second."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        what, done, total = record.__dict__["what"], record.__dict__["done"], record.__dict__["total"]
        if done < total and time.monotonic() - self.last < 0.2:
            return
        self.last = time.monotonic()
        sys.stdout.write(PROGRESS_MARK + json.dumps({"what": what, "done": done, "total": total}) + "\n")
        sys.stdout.flush()


def set_up_logging() -> LastLines:
    """Logs and progress to standard output, in the forms that the launcher reads; the last lines of the log."""
    last = LastLines()
    handlers = [logging.StreamHandler(sys.stdout), last]
    logging.basicConfig(handlers=handlers, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in ("hardcase", "components"):
        logging.getLogger(name).setLevel(logging.INFO)
    progress = logging.getLogger("hardcase.progress")
    progress.handlers = [_ProgressLines()]
    progress.propagate = False
    return last
