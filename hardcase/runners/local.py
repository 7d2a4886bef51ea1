"""The embedded engine: the pipeline on one machine by `kfp.local`, with its cache as the resume.

A run killed at any moment is simply run again: what was complete comes from the cache, the step that was at work goes
on from the checkpoints in its private folder.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from kfp import local

from hardcase.config import Profile
from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import Link
from hardcase.provenance.code import git_environment
from hardcase.provenance.openlineage import default_environment, emit
from hardcase.provenance.products import check_product
from hardcase.registry.ledger import read_ledger
from hardcase.registry.runs import write_run
from hardcase.report.page import run as write_report
from hardcase.report.summary import fetch_artifacts, summarise
from hardcase.runners.containers import check
from hardcase.runners.containers import runner as container_runner
from hardcase.runners.display import Bars
from hardcase.runners.home import QUIET, Home, name_of_user
from hardcase.runners.recording import RecordingCache, Router
from hardcase.steps.configure import plan
from hardcase.store.store import open_store, write_atomically
from pipelines.retraining import STEPS, retraining

Runner = Any  # one of kfp.local's, which has no types
PROCESSES = local.SubprocessRunner(use_venv=False)
# What is known of a step whose process left no record of its failure.
UNSAID = "its process ended without a word: killed, out of memory, or it could not start"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    summary: dict[str, Any]
    exit_code: int


def run(profile: Profile, name: str, home: Home, containers: bool = False) -> Outcome:
    """Retrain once.

    Args:
        profile: the configuration; its `source` is read.
        name: the profile's name, for the summary.
        home: where everything lies; one run at a time.
        containers: run each step in a container of its image, not as a process in this environment.
    """
    with home.locked():
        if containers:
            check(home)
        arguments = plan(profile, home.store, home.tracking_uri, str(home.scratch), home.keyring(), home.root)
        folder = home.new_run(arguments["launch"]["fingerprint"])
        resolved = yaml.safe_dump(profile.model_dump(mode="json", by_alias=True), sort_keys=False)
        write_atomically(folder / "config.yaml", resolved.encode())
        facts = {"profile": name, "source": profile.source, "seed": profile.seed}
        with (
            Bars() as bars,
            environment(child_environment(profile, folder, home)),
            container_runner(profile, home) if containers else nullcontext(PROCESSES) as runner,
        ):
            cache = RecordingCache(home.cache, STEPS, bars, open_store(home.store), _still_kept(home))
            return _run(arguments, folder, facts, home, cache, bars, runner)


def _run(
    arguments: dict[str, Any],
    folder: Path,
    facts: dict[str, Any],
    home: Home,
    cache: RecordingCache,
    bars: Bars,
    runner: Runner,
) -> Outcome:
    error: dict[str, Any] | None = None
    left = dict[str, str]()
    began = _now()
    emit("START", folder.name)
    try:
        execute(lambda: retraining(**arguments), folder, home, cache, bars, runner)
    except RuntimeError as failure:  # all that kfp.local says of a failed task
        error, left = _what_failed(cache, folder, failure)
    except BaseException as failure:
        error = {"message": f"stopped by {failure!r}; run again to go on", "step": cache.current, "exit_code": 1}
        raise
    finally:
        if error is not None and cache.current is not None:
            cache.fail()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            artifacts = fetch_artifacts(open_store(home.store), cache.links.values(), left, Path(scratch))
            if (table := artifacts.get("quarantine")) is not None:
                shutil.copyfile(table, folder / "quarantine.parquet")
            page = _report(artifacts, folder, {**facts, "run": folder.name}, error, home.store)
            last, times = cache.attestations.get(STEPS[-1]), (began, _now())
            summary = summarise(folder.name, facts, home.store, cache.records, artifacts, error, page, times, last)
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        if summary["snapshot"]:
            kept = open_store(home.store)
            stored = {**summary, "report": kept.put_object(Path(page).read_bytes()) if page else None}
            write_run(kept, folder.name, stored)
        emit("FAIL" if error else "COMPLETE", folder.name, error=error["message"] if error else "")
    exit_code = error["exit_code"] if error else 3 if summary["status"] == "rejected" else 0
    return Outcome(folder, summary, exit_code)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def execute(
    pipeline: Callable[[], Any],
    folder: Path,
    home: Home,
    cache: RecordingCache,
    bars: Bars,
    runner: Runner = PROCESSES,
) -> None:
    """Call a pipeline, which is to run it, with that cache; artifacts and logs go into `folder`.

    Raises:
        RuntimeError: a step failed; all that kfp.local says.
    """
    local.init(
        runner,
        pipeline_root=str(folder / "artifacts"),
        workspace_root=str(folder / "workspace"),
        enable_caching=True,
        cache_root=str(home.cache),
    )
    cache.install()
    logging.captureWarnings(True)
    try:
        with Router(cache, folder / "logs", bars) as router, redirect_stdout(router):
            pipeline()
    finally:
        logging.captureWarnings(False)


def child_environment(profile: Profile, folder: Path, home: Home) -> dict[str, str]:
    """What steps find in their environment."""
    checkpoint = profile.model.checkpoint
    offline = checkpoint is None or Path(checkpoint).exists()
    return {
        "HARDCASE_LAUNCHER_PID": str(os.getpid()),
        "HARDCASE_RUN_DIR": str(folder),
        "HARDCASE_RUN": folder.name,
        "HARDCASE_WHO": name_of_user(),
        **home.signing_environment(),
        **git_environment(),
        **default_environment(folder),
        **QUIET,
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    }


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set them in this process, for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _still_kept(home: Home) -> Callable[[Link], None]:
    """Return what is asked of a hit of the cache: it counts only if what it names is in store and registry."""
    store = open_store(home.store)

    def check(link: Link) -> None:
        for name, digest in link.products.items():
            check_product(store, digest, link.kind(name))
        if link.step == "register":
            _check_registered(json.loads(store.get_object(link.products["registration"])), home)

    return check


def _check_registered(registered: Mapping[str, Any], home: Home) -> None:
    """Find that what a registration names is in ledger, store and MLflow; aliases may have moved on since."""
    store = open_store(home.store)
    ledger = read_ledger(store, registered["name"], home.keyring())
    version = ledger.versions.get(registered["version"])
    if version is None or (version.digest, version.verdict) != (registered["digest"], registered["verdict"]):
        raise HardcaseError(
            f"{registered['name']}:{registered['version']} is not in the ledger of {store.uri} as it was"
        )
    if home.tracking_uri.startswith("sqlite:///") and not Path(home.tracking_uri.removeprefix("sqlite:///")).is_file():
        raise HardcaseError(f"{home.tracking_uri}: gone; run again to make it anew")
    listings = [json.loads(store.get_object(digest)) for digest in (version.digest, version.dossier)]
    for digest in (version.statement, version.evaluation, *(each for listing in listings for each in listing.values())):
        store.check_object(digest)


def _what_failed(cache: RecordingCache, folder: Path, failure: RuntimeError) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the error of the step that failed, and the sha256 of what its refusal left, by name."""
    step = cache.current
    if step is None:
        raise failure
    record, log = next(folder.glob("errors/*.json"), None), folder / "logs" / f"{step}.log"
    error: dict[str, Any] = {"exit_code": 1, "message": UNSAID, "step": step}
    left = dict[str, str]()
    if record is not None:
        known = json.loads(record.read_text(encoding="utf-8"))
        left = known["left"]
        error |= {"message": known["message"], "exit_code": InputError.exit_code if known["state"] == "refused" else 1}
    else:
        emit("FAIL", folder.name, step, error=error["message"])
    if error["exit_code"] == 1:
        error["message"] = f"{step}: {error['message']}; the log is {log}; run again to go on from here"
    return error, left


def _report(
    artifacts: dict[str, Path], folder: Path, facts: dict[str, Any], error: dict[str, Any] | None, store: str
) -> str | None:
    page = folder / "report.html"
    try:
        write_report(artifacts, {**facts, "error": error["message"] if error else None}, store, page)
    except Exception:
        logger.exception("the report of the run could not be written")
        return None
    return str(page)
