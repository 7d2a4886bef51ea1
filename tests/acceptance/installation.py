"""The installation that is checked: how its options name it, and how the checks reach it.

The options are variables of the environment, which `make acceptance` sets. Whatever the checks make carries `prefix` in
its name: an experiment, a pipeline, runs, a schedule, a registered model.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api as api
import pytest
import yaml

from hardcase.errors import HardcaseError
from hardcase.kubeflow.client import Client, Refused, address_of
from hardcase.kubeflow.package import Package, load_package, with_images
from hardcase.kubeflow.sending import Kubeflow
from hardcase.store.store import Store, open_store

COMMAND = (sys.executable, "-c", "from hardcase.cli.main import main; main()")
VARIABLE = "ACCEPTANCE_"
PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "retraining.yaml"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
FEW = {"validate__min_train_rows": 100_000}  # a setting that refuses smoke's rows
Value = TypeVar("Value")


def option(name: str, default: str = "") -> str:
    """Return an option of `make acceptance`."""
    return os.environ.get(VARIABLE + name) or default


def file_option(name: str) -> str:
    """Return an option that names a file; the command line is called in another folder."""
    return str(Path(option(name)).absolute()) if option(name) else ""


@dataclass(frozen=True)
class Launched:
    """What `hardcase launch --json` ended with."""

    exit_code: int
    facts: dict[str, Any]
    stderr: str

    @property
    def run_id(self) -> str:
        return str(self.facts["run_id"])

    @property
    def message(self) -> str:
        return str((self.facts.get("error") or {}).get("message") or "")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Kubeflow, and what belongs to it.

    Attributes:
        folder: for files of the checks.
        host: URL of Kubeflow Pipelines' API.
        ui: URL of its UI.
        several: whether the installation is for several users.
        namespace: of the runs; empty in an installation for a single user.
        token_file: with the bearer token.
        ca: certificates to trust.
        store: URI of the object store of the runs.
        mlflow: URL of MLflow.
        context: of kubectl.
        pins: `IMAGE=REFERENCE`, where the images of the pipeline really are.
        key: public key to audit with; those in the store are trusted without one.
        airflow: Python of Airflow's environment.
        limit: seconds that one run may take.
        limit_cached: seconds that a run from the cache may take, with the settings that we ship.
        prefix: of the name of everything that is made.
    """

    folder: Path
    host: str = field(default_factory=lambda: option("HOST"))
    ui: str = field(default_factory=lambda: option("UI", option("HOST")))
    several: bool = field(default_factory=lambda: option("MODE", "multi") == "multi")
    namespace: str = field(default_factory=lambda: option("NAMESPACE", "hardcase"))
    token_file: str = field(default_factory=lambda: file_option("TOKEN_FILE"))
    ca: str = field(default_factory=lambda: file_option("CA"))
    store: str = field(default_factory=lambda: option("STORE"))
    mlflow: str = field(default_factory=lambda: option("MLFLOW"))
    context: str = field(default_factory=lambda: option("CONTEXT"))
    pins: list[str] = field(default_factory=lambda: option("PINS").split())
    key: str = field(default_factory=lambda: file_option("KEY"))
    airflow: str = field(default_factory=lambda: option("AIRFLOW"))
    limit: float = field(default_factory=lambda: float(option("LIMIT", "1800")))
    limit_cached: float = field(default_factory=lambda: float(option("LIMIT_CACHED", "120")))
    prefix: str = field(default_factory=lambda: f"acceptance-{datetime.now(UTC):%m%d%H%M}-{secrets.token_hex(2)}")

    @property
    def user_namespace(self) -> str:
        """Namespace as the API takes it."""
        return self.namespace if self.several else ""

    @property
    def pods_namespace(self) -> str:
        """Namespace of the pods; those of a single user run beside Kubeflow."""
        return self.namespace if self.several else "kubeflow"

    @cached_property
    def client(self) -> Client:
        """Upstream's client, with the token."""
        files = {"token_file": Path(self.token_file) if self.token_file else None}
        return Client(address_of(self.host, ui=self.ui, ca=Path(self.ca) if self.ca else None, **files))

    @cached_property
    def kubeflow(self) -> Kubeflow:
        """What `hardcase launch` sends by."""
        return Kubeflow(self.client)

    @cached_property
    def opened(self) -> Store:
        """The store of the runs."""
        return open_store(self.needs("STORE", self.store), cached=False)

    @cached_property
    def package(self) -> Package:
        """The compiled retraining under a name of its own: nothing of it is in Kubeflow's cache."""
        first, *others = yaml.safe_load_all(PIPELINE.read_text(encoding="utf-8"))
        first["pipelineInfo"]["name"] = f"{self.prefix}-retraining"
        path = self.folder / "retraining.yaml"
        path.write_text(yaml.safe_dump_all([first, *others]), encoding="utf-8")
        package = with_images(load_package(str(path)), self.pins)
        path.write_bytes(package.content)
        return package

    def needs(self, name: str, value: str) -> str:
        """Return an option's value; without one, what needs it is not checked."""
        if not value:
            pytest.skip(f"it needs {name}=…")
        return value

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the parameters of a run: smoke, registered under a name of its own."""
        given = {"register.name": self.prefix, **{name.replace("__", "."): value for name, value in more.items()}}
        return {"profile": "smoke", "settings": given}

    def command(self, *arguments: str, limit: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run `hardcase` as a user of another machine does, with this machine's credentials for the store."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HARDCASE_")}
        own = {"HARDCASE_HOME": str(self.folder / "home"), "HARDCASE_CACHE": str(self.folder / "cache")}
        try:
            return subprocess.run(
                [*COMMAND, *arguments],
                env={**clean, **own, "COLUMNS": "120"},
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            words = "" if error.stderr is None else str(error.stderr, "utf-8", "replace")
            last = next(reversed(words.split("\n")[:-1]), "nothing")
            pytest.fail(f"hardcase {arguments[0]} did not end within {limit:.0f} s; it said last: {last}")

    def reach(self) -> list[str]:
        """Return the options by which `hardcase launch` reaches it."""
        found = ["--host", self.host, "--ui", self.ui, "--namespace", self.user_namespace]
        given = {"--token-file": self.token_file, "--ca": self.ca, "--store": self.store, "--mlflow": self.mlflow}
        return [*found, *(word for name, value in given.items() if value for word in (name, value))]

    def launch(self, name: str, *arguments: str, parameters: dict[str, Any] | None = None) -> Launched:
        """Launch a run or a schedule of that name, and follow it unless told otherwise."""
        words = ["launch", *self.reach(), "--experiment", self.prefix, "--json", "--poll", "1"]
        if "--attach" not in arguments:
            _ = self.package
            words += ["--pipeline", str(self.folder / "retraining.yaml"), "--key", f"{self.prefix}-{name}"]
            for key, value in (parameters or self.settings()).items():
                words += ["-p", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        done = self.command(*words, *arguments, limit=self.limit)
        lines = done.stdout.strip().splitlines()
        if not lines:
            pytest.fail(f"hardcase launch ended with {done.returncode}: {done.stderr.strip()[-600:]}")
        facts = json.loads(lines[-1])
        if not {"run_id", "recurring_run_id"} & set(facts):
            pytest.fail(f"nothing was launched: {facts['error']['message']}")
        return Launched(done.returncode, facts, done.stderr)

    def seconds(self, run_id: str) -> float:
        """Return how long a run took, by Kubeflow's clock."""
        run = self.kubeflow.run(run_id)
        return float((run.finished_at - run.created_at).total_seconds())

    def wait(self, what: str, look: Callable[[], Value | None], limit: float | None = None) -> Value:
        """Look once a second until there is something to see."""
        end = time.monotonic() + (limit or self.limit)
        while time.monotonic() < end:
            if (seen := look()) is not None:
                return seen
            time.sleep(1)
        pytest.fail(f"{what}: not within {limit or self.limit:.0f} s")

    def kubectl(self, path: str, verb: str = "get") -> dict[str, Any]:
        """Ask the cluster's API for a path, as the user of the context."""
        words = ["kubectl", "--context", self.needs("CONTEXT", self.context), verb, "--raw", path]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            pytest.fail(f"kubectl {verb} {path}: {done.stderr.strip()[-300:]}; may the context's user do this?")
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def clear(self) -> Iterator[str]:
        """Remove or archive all that the checks made, and say of each what became of it."""
        schedules, runs = api.RecurringRunServiceApi(self.client), api.RunServiceApi(self.client)
        experiments, pipelines = api.ExperimentServiceApi(self.client), api.PipelineServiceApi(self.client)
        delete = schedules.recurring_run_service_delete_recurring_run
        archive = experiments.experiment_service_archive_experiment
        for each in self.ours(schedules.recurring_run_service_list_recurring_runs, "recurring_runs"):
            yield _tell(each, "deleted", delete, each.recurring_run_id)
        for each in self.ours(runs.run_service_list_runs, "runs"):
            if each.state not in ENDED:
                yield _tell(each, "terminated", self.kubeflow.terminate, each.run_id)
        for each in self.ours(experiments.experiment_service_list_experiments, "experiments"):
            yield _tell(each, "archived, with its runs", archive, each.experiment_id)
        for each in self.ours(pipelines.pipeline_service_list_pipelines, "pipelines"):
            yield _tell(each, "deleted", pipelines.pipeline_service_delete_pipeline, each.pipeline_id, cascade=True)
        yield f"model {self.prefix}: stays in the store and in MLflow, whose ledger is never cut"

    def ours(self, listing: Callable[..., Any], kind: str) -> list[Any]:
        """Return what the checks made, of a listing."""
        found, token = [], ""
        while True:
            page = listing(namespace=self.user_namespace, page_size=100, page_token=token, sort_by="created_at desc")
            found += [each for each in getattr(page, kind) or [] if str(each.display_name).startswith(self.prefix)]
            if not (token := page.next_page_token or ""):
                return found


def _tell(thing: Any, done: str, act: Callable[..., Any], *arguments: str, **more: bool) -> str:
    kind = type(thing).__name__.removeprefix("V2beta1")
    try:
        act(*arguments, **more)
    except Refused as error:
        return f"{kind} {thing.display_name}: STAYS, remove it by hand ({error})"
    except HardcaseError as error:
        return f"{kind} {thing.display_name}: perhaps it stays ({error})"
    return f"{kind} {thing.display_name}: {done}"
