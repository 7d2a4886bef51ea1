"""Execute a compiled pipeline on one machine by `kfp.local`, with its cache as the resume.

A run killed at any moment is simply run again: what was complete comes from the cache, the step that was at work
continues from the checkpoints in its private folder.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from kfp import local
from kfp.local.pipeline_orchestrator import run_local_pipeline
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from hardcase.compiled import read_pipeline
from hardcase.errors import GateRejected, build_error
from hardcase.provenance.code import git_environment
from hardcase.provenance.openlineage import default_environment
from hardcase.provenance.products import fetch_product
from hardcase.provenance.statement import FILE
from hardcase.registry.runs import read_run
from hardcase.runners.containers import Inputs, check, open_runner
from hardcase.runners.display import Bars
from hardcase.runners.home import QUIET, Home, name_of_user
from hardcase.runners.recording import RecordingCache, Router
from hardcase.runners.warm import fork_steps
from hardcase.steps.conclude import conclude
from hardcase.steps.preflight import check_surroundings
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_store, write_atomically

# On one machine nothing is divided, whatever the profile asks of a cluster.
UNDIVIDED: Final[Mapping[str, Any]] = {"cluster": {}}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, its record with the path of the report, and the exit code of the command."""

    folder: Path
    record: dict[str, Any]
    exit_code: int


def run_pipeline(
    pipeline: str, arguments: Mapping[str, Any], home: Home, inputs: Inputs, containers: bool = False
) -> Outcome:
    """Execute a compiled pipeline, `retraining` or `evaluation`, once; a home has one run at a time, others wait.

    `inputs` is what the run reads besides its home. With `containers` each step runs in a container of its image, not
    as a process in this environment.
    """
    with home.locked():
        if containers:
            check(home)
        check_surroundings(open_store(home.store), home.keyring(), home.tracking_uri, os.environ)
        arguments = {**arguments, "settings": {**arguments["settings"], **UNDIVIDED}}
        folder = home.new_run(bytes_digest(canonical_json(arguments)), newest=pipeline == "retraining")
        with (
            Bars() as bars,
            environment(child_environment(folder, home, inputs)),
            open_runner(home, inputs) if containers else fork_steps() as runner,
        ):
            return _execute(pipeline, arguments, folder, home, bars, runner)


def _execute(pipeline: str, arguments: dict[str, Any], folder: Path, home: Home, bars: Bars, runner: Any) -> Outcome:
    spec = copy.deepcopy(read_pipeline(pipeline))
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)  # of a cluster; here a person runs it again
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"].pop("resources", None)  # of a pod
    cache = RecordingCache(home.root / "cache", bars, open_store(home.store), home.keyring())
    local.init(
        runner,
        pipeline_root=str(folder / "artifacts"),
        workspace_root=str(folder / "workspace"),
        enable_caching=True,
        cache_root=cache.cache_root,
    )
    cache.install()
    router = Router(folder / "logs", bars, cache)
    logging.captureWarnings(True)
    try:
        with router, redirect_stdout(router), warnings.catch_warnings():
            run_local_pipeline(ParseDict(spec, PipelineSpec()), arguments)
    except RuntimeError:  # all that kfp.local says of a failed task
        logger.debug("the pipeline failed", exc_info=True)
    except (KeyboardInterrupt, SystemExit):  # the latter of SIGTERM
        router.fail("cancelled")
        _conclude(pipeline, arguments, folder, home, "RUNNING")
        raise
    finally:
        logging.captureWarnings(False)
    if (record := read_run(open_store(home.store), folder.name)) is None:
        router.fail("failed")
        if error := router.error:  # the store itself may be at fault
            raise build_error(error["exit_code"], error["message"])
        record = _conclude(pipeline, arguments, folder, home, "FAILED")
    return _outcome(record, folder, home)


def _conclude(pipeline: str, arguments: Mapping[str, Any], folder: Path, home: Home, state: str) -> dict[str, Any]:
    """Do what the exit handler would have done."""
    asked = {"pipeline": pipeline, "profile": "", "seed": 0, **arguments}
    asked.pop("model", None)
    with environment({"HARDCASE_RUN": folder.name}):
        ended = conclude(open_store(home.store), home.keyring(), folder.name, state, asked, folder / "report.html")
    return dict(ended.record)


def _outcome(record: dict[str, Any], folder: Path, home: Home) -> Outcome:
    """Write the report and the tables of a run into its folder, and decide how the command ends."""
    store, error = open_store(home.store), record["error"]
    if report := record["report"]:
        record["report"] = str(fetch_product(store, report, FILE, folder / "report.html"))
    for table in ("quarantine", "evaluation"):
        if digest := record[table]:
            fetch_product(store, digest, FILE, folder / f"{table}.parquet")
    write_atomically(folder / "summary.json", json.dumps(record, indent=2).encode() + b"\n")
    rejected = GateRejected.exit_code if record["status"] == "rejected" else 0
    return Outcome(folder, record, error["exit_code"] if error else rejected)


def child_environment(folder: Path, home: Home, inputs: Inputs) -> dict[str, str]:
    """Return what steps find in their environment."""
    return {
        "HARDCASE_HOME": str(home.root),
        "HARDCASE_LAUNCHER_PID": str(os.getpid()),
        "HARDCASE_RUN": folder.name,
        "HARDCASE_SCRATCH": str(home.root / "scratch"),
        "HARDCASE_STORE": home.store,
        "HARDCASE_WHO": name_of_user(),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(home.root / "torchinductor"),
        "MLFLOW_TRACKING_URI": home.tracking_uri,
        **home.signing_environment(),
        **git_environment(),
        **default_environment(folder),
        **QUIET,
        **({} if inputs.hub else {"HF_HUB_OFFLINE": "1"}),
    }


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
