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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from hardcase.audit.lineage import emit
from hardcase.audit.links import Link, open_link
from hardcase.audit.signing import DistrustError, Keyring, open_keyring
from hardcase.data.digest import bytes_digest, canonical_json, path_digest
from hardcase.errors import HardcaseError

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
    _die_with_launcher()
    set_up_logging()
    run, read = os.environ.get("HARDCASE_RUN", ""), dict[str, str]()
    try:
        keys = keyring()
        materials = {name: verified(artifact, keys) for name, artifact in inputs.items()}
        read = _datasets(inputs, keys, parameters)
        emit("START", run, step, read)
        digests = list(materials.values())
        work = bytes_digest(canonical_json({"step": step, "inputs": digests, **parameters}))
        with _private_folder(Path(scratch) / f"{step}-{work[:16]}") as folder:
            yield folder
        products = {name: path_digest(Path(artifact.path)) for name, artifact in outputs.items()}
        link = Link(step, {**materials, **sources}, products, parameters, circumstances()).signed(keys).decode()
        for name, artifact in outputs.items():
            artifact.metadata.update({"sha256": products[name], "link": link})
        emit("COMPLETE", run, step, read, {f"{step}.{name}": digest for name, digest in products.items()})
    except HardcaseError as error:
        _record_error(step, error.exit_code, str(error))
        emit("FAIL", run, step, read, error=str(error))
        logger.exception("%s failed", step)
        sys.exit(error.exit_code)
    except Exception as error:
        message = "".join(traceback.format_exception_only(error)).strip()
        _record_error(step, 1, message)
        emit("FAIL", run, step, read, error=message)
        raise


def _datasets(inputs: Mapping[str, Artifact], keys: Keyring, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What is read, by the names that the steps that made it gave it."""
    found = dict([parameters["source"]]) if "source" in parameters else {}
    for artifact in inputs.values():
        link, digest = link_of(artifact, keys), artifact.metadata["sha256"]
        name = next(name for name, product in link.products.items() if product == digest)
        found[f"{link.step}.{name}"] = digest
    return found


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


def _record_error(step: str, exit_code: int, message: str) -> None:
    if run := os.environ.get("HARDCASE_RUN_DIR"):
        path = Path(run) / "errors" / f"{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"exit_code": exit_code, "message": message, "step": step}), encoding="utf-8")


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with_launcher() -> None:
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


def set_up_logging() -> None:
    """Logs and progress to standard output, in the forms that the launcher reads."""
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in ("hardcase", "components"):
        logging.getLogger(name).setLevel(logging.INFO)
    progress = logging.getLogger("hardcase.progress")
    progress.handlers = [_ProgressLines()]
    progress.propagate = False
