"""What every step does around its work when it runs in a process of its own, under kfp.local or in a pod.

A step hands on one text: the sha256 of its signed attestation, which names what the step wrote. Attestation and
products are in the object store, from where the next step fetches what it needs, verified. Around its work a step
keeps a private folder from which a stopped step continues, reports its progress and its errors in a form the launcher
reads, and never outlives the launcher.
"""

import json
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from hardcase import __version__
from hardcase.config.base import Destination
from hardcase.database import database_uri
from hardcase.errors import HardcaseError, InputError
from hardcase.lifetime import die_with_launcher, hold_lock
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.openlineage import emit
from hardcase.provenance.products import keep_product
from hardcase.registry.runs import StepRecord, read_records, write_record
from hardcase.runtime.devices import require_board, require_gpus
from hardcase.runtime.materials import Work, keyring, material_of
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store, open_store
from hardcase.text import PrintableFormatter

PROGRESS_MARK = "::progress:: "  # begins a line of JSON about progress, or about the beginning or end of a step
TRAIN_IMAGE = f"hardcase/python-train:{__version__}"
LIGHT_IMAGE = f"hardcase/python-light:{__version__}"
LAST_LINES: Final = 30
METRICS: Final = "metrics"  # where a step shows live metrics: of its plan, and of no effect on its result
# A pod's variables as files, one each: KFP names every key of a ConfigMap or Secret in the pod's specification, which
# the workflow keeps six times a step (docs/decisions/0010).
MOUNTED: Final = tuple(Path("/etc/hardcase", name) for name in ("environment", "credentials", "notify"))
VARIABLE: Final = re.compile("[A-Z][A-Z0-9_]*")
# What a container writes there ends the message of its node in Argo (argo-workflows v4.0.5,
# workflow/controller/operator.go:1505), by which the retry strategy of infra/kubernetes knows a refused input.
TERMINATION_MESSAGE = Path("/dev/termination-log")
NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LONGEST_MESSAGE: Final = 2048  # bytes; the kubelet cuts it at 4096
logger = logging.getLogger(__name__)


@contextmanager
def running(
    step: str, plan: Mapping[str, Any], inputs: Mapping[str, str], sources: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Work]:
    """Surround a step's work, and attest it; every file in `work.outputs` afterwards is a product.

    Args:
        plan: what `configure` hands to the step: `store`, `scratch`, and `parameters`, which identify the work and are
            signed.
    """
    run, read, parameters = os.environ.get("HARDCASE_RUN", ""), dict[str, str](), _restore_integers(plan["parameters"])
    plan = {**plan, "parameters": parameters}
    with noted(step) as record:
        try:
            store, keys = open_store(plan["store"]), keyring()
            given = {name: attestation for name, attestation in inputs.items() if attestation}
            materials = {name: material_of(name, attestation, store, keys) for name, attestation in given.items()}
            record.materials = sorted({material.attested_by for material in materials.values()})
            read = {name: material.digest for name, material in materials.items()}
            source = dict([parameters["source"]]) if "source" in parameters else {}
            emit("START", run, step, {**source, **read})
            work = bytes_digest(canonical_json({"step": step, "inputs": list(read.values()), **parameters}))
            with private_folder(Path(plan["scratch"]) / f"{step}-{work[:16]}") as folder:
                done = Work(folder, materials, store, plan)
                shutil.rmtree(done.outputs, ignore_errors=True)
                done.outputs.mkdir()
                try:
                    require_gpus(plan.get("gpus", ""))
                    yield done
                except InputError:  # what explains the refusal outlives it: the quarantine, failed expectations
                    files = sorted(path for path in done.outputs.iterdir() if path.is_file())
                    record.left = {path.name: keep_product(store, path)[0] for path in files}
                    raise
                products = {path.name: keep_product(store, path) for path in sorted(done.outputs.iterdir())}
                kinds = {name: material.kind for name, material in materials.items()}
                link = Attestation(
                    step,
                    {**read, **sources},
                    {name: digest for name, (digest, _) in products.items()},
                    parameters,
                    circumstances(),
                    kinds | {name: kind for name, (_, kind) in products.items()},
                    {name: material.attested_by for name, material in materials.items()},
                )
                record.attestation = done.attestation = store.put_object(link.sign(keys))
                record.cached = done.cached
            emit("COMPLETE", run, step, {**source, **read}, link.products)
        except Exception as error:
            emit("FAIL", run, step, read, error=_describe(error))
            raise


def _restore_integers(value: Any) -> Any:
    """Return a JSON value whose whole numbers are integers: KFP hands on every number of a structure as a float."""
    if isinstance(value, Mapping):
        return {key: _restore_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@contextmanager
def noted(step: str) -> Iterator[StepRecord]:
    """Surround what a process does for a step: its environment, log, errors, and its record, which is yielded.

    A `HardcaseError` becomes a `SystemExit` with its exit code.
    """
    load_environment()
    die_with_launcher()
    last, record = set_up_logging(), StepRecord(step, "running", started=_now())
    _mark({"step": step, "state": "running"})
    try:
        _refuse_again(step)
        _write(record)
        yield record
    except HardcaseError as error:
        logger.exception("%s failed", step)
        _fail(record, str(error), list(last.lines), error.exit_code)
        sys.exit(error.exit_code)
    except Exception as error:
        lines = [*last.lines, *"".join(traceback.format_exception(error)).splitlines()]
        _fail(record, _describe(error), lines[-LAST_LINES:], 1)
        raise
    _mark({"step": step, "state": "succeeded"})
    record.state, record.ended = "succeeded", _now()
    _write(record)


def load_environment() -> None:
    """Set the variables that a pod finds as files in its mounted ConfigMap and Secrets, unless they are set."""
    for folder in MOUNTED:
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.is_file() and VARIABLE.fullmatch(path.name):
                os.environ.setdefault(path.name, path.read_text(encoding="utf-8").rstrip("\n"))


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, HardcaseError) else "".join(traceback.format_exception_only(error)).strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _run_in_store() -> tuple[Store, str] | None:
    """Return the store and the id of this process's run; None where the environment names none."""
    run, store = os.environ.get("HARDCASE_RUN"), os.environ.get("HARDCASE_STORE")
    return (open_store(store), run) if run and store else None


def _refuse_again(step: str) -> None:
    """Refuse at once what was refused before in this run: an engine retries a step whatever the cause."""
    try:
        before = read_records(*run).get(step) if (run := _run_in_store()) else None
    except HardcaseError:
        logger.exception("whether %s was refused before cannot be read", step)
        return
    if before and before.state == "refused":
        raise InputError(before.message)


def _fail(record: StepRecord, message: str, log: list[str], exit_code: int) -> None:
    record.state = "refused" if exit_code == InputError.exit_code else "failed"
    record.ended, record.message, record.log = _now(), message, log
    _mark({"step": record.step, "state": record.state, "message": message, "exit_code": exit_code})
    if TERMINATION_MESSAGE.exists():
        with suppress(OSError):
            TERMINATION_MESSAGE.write_bytes(f"hardcase: {record.state}: {message}".encode()[:LONGEST_MESSAGE])
    _write(record)


def _write(record: StepRecord) -> None:
    """Write a record into the store; a failure to write it is no failure of the step."""
    try:
        if run := _run_in_store():
            write_record(*run, record)
    except HardcaseError:
        logger.exception("no record of %s was written", record.step)


def read_locations() -> dict[str, str]:
    """Return where this process works, by its environment: `store`, `scratch` and `tracking_uri` (MLflow's)."""
    load_environment()
    if not (store := os.environ.get("HARDCASE_STORE")):
        raise InputError("no store: set HARDCASE_STORE to a folder or s3://bucket/prefix")
    scratch = os.environ.get("HARDCASE_SCRATCH", "/scratch")
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or database_uri(Path(scratch, "mlflow.db"))
    return {"store": store, "scratch": scratch, "tracking_uri": tracking_uri}


def open_destination(plan: Mapping[str, Any]) -> Destination:
    """Return where a training shows live metrics: in the run's folder of this machine, or on the scratch volume.

    Raises:
        InputError: a board that is not installed or not set up.
    """
    require_board(plan[METRICS])
    run = os.environ.get("HARDCASE_RUN") or "run"
    home = os.environ.get("HARDCASE_HOME")
    folder = Path(home, "runs", run, "metrics") if home else Path(plan["scratch"], "metrics", run)
    return Destination(kind=plan[METRICS], folder=folder, tracking_uri=plan["tracking_uri"], run=run)


def namespace_of() -> str:
    """Return the namespace of this pod, or nothing outside a cluster."""
    return NAMESPACE.read_text(encoding="utf-8").strip() if NAMESPACE.is_file() else ""


def circumstances() -> dict[str, str]:
    """Return where, by whom and from what this process runs, as far as its environment says."""
    names = ("run", "who", "commit", "clean", "image")
    return {name: os.environ[key] for name in names if os.environ.get(key := f"HARDCASE_{name.upper()}")}


@contextmanager
def private_folder(folder: Path) -> Iterator[Path]:
    """Keep a folder for work that is continued where it was stopped; remove it when the work is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder):  # the same work of a launcher just killed may still be dying
        yield folder
        shutil.rmtree(folder)


def _mark(record: Mapping[str, Any]) -> None:
    """Print a line that the launcher on one machine reads."""
    sys.stdout.write(PROGRESS_MARK + json.dumps(record) + "\n")
    sys.stdout.flush()


class _ProgressLines(logging.Handler):
    """Progress records as JSON lines on standard output, a few a second."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        progress = {name: record.__dict__[name] for name in ("what", "done", "total")}
        if progress["done"] >= progress["total"] or time.monotonic() - self.last >= 0.2:
            self.last = time.monotonic()
            _mark(progress)


class LastLines(logging.Handler):
    """The last lines of the log, kept in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LAST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(self.format(record).splitlines())


def set_up_logging() -> LastLines:
    """Send logs and progress to standard output, in the launcher's forms, and keep the log's last lines."""
    last = LastLines()
    logging.basicConfig(handlers=[logging.StreamHandler(sys.stdout), last], force=True)
    for handler in logging.root.handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("hardcase").setLevel(logging.INFO)
    progress = logging.getLogger("hardcase.progress")
    progress.handlers = [_ProgressLines()]
    progress.propagate = False
    return last
