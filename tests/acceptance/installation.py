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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from hardcase.cli.package import Package, load_package, replace_images
from hardcase.kubeflow.address import KubeflowError, Refused, find_address
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.launching import list_all, terminate
from hardcase.kubeflow.runs import ENDED, parse_moment
from hardcase.store.store import Store, open_store

COMMAND = (sys.executable, "-c", "from hardcase.cli.main import main; main()")
VARIABLE = "ACCEPTANCE_"
PIPELINE = Path(__file__).resolve().parents[2] / "hardcase" / "compiled" / "retraining.yaml"
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
        """The client that `hardcase launch` uses, with the token."""
        files = {"token_file": self.token_file, "ca": self.ca}
        return Client(find_address(self.host, ui=self.ui, namespace=self.user_namespace, **files))

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run as it is now."""
        return self.client.ask("GET", f"runs/{run_id}")

    def terminate(self, run_id: str) -> None:
        """Stop a run."""
        self.client.run(terminate(run_id, self.client.address))

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
        package = replace_images(load_package(str(path)), self.pins)
        path.write_bytes(package.content)
        return package

    def needs(self, name: str, value: str) -> str:
        """Return an option's value; without one, what needs it is not checked."""
        if not value:
            pytest.skip(f"it needs {name}=…")
        return value

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the parameters of a run: smoke, registered under a name of its own, and promoted however bad it is."""
        own = {"register.name": self.prefix, "register.min_overall": 0, "register.min_valid": 0}
        given = {**own, **{name.replace("__", "."): value for name, value in more.items()}}
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
        run = self.run(run_id)
        return parse_moment(run["finished_at"], 0) - parse_moment(run["created_at"], 0)

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
        for each in self.ours("recurringruns"):
            yield self._remove(each, "recurring_run", "deleted", "DELETE", "recurringruns/{}")
        for each in self.ours("runs"):
            if each["state"] not in ENDED:
                yield self._remove(each, "run", "terminated", "POST", "runs/{}:terminate")
        for each in self.ours("experiments"):
            yield self._remove(each, "experiment", "archived, with its runs", "POST", "experiments/{}:archive")
        for each in self.ours("pipelines"):
            yield self._remove(each, "pipeline", "deleted", "DELETE", "pipelines/{}", cascade="true")
        yield f"model {self.prefix}: stays in the store and in MLflow, whose ledger is never cut"

    def ours(self, listing: str) -> list[dict[str, Any]]:
        """Return what the checks made, of a listing."""
        things = self.client.run(list_all(listing, self.client.address, sort_by="created_at desc"))
        return [each for each in things if str(each["display_name"]).startswith(self.prefix)]

    def _remove(self, thing: Mapping[str, Any], kind: str, done: str, method: str, path: str, **query: str) -> str:
        name = f"{kind.replace('_', ' ').capitalize()} {thing['display_name']}"
        try:
            self.client.ask(method, path.format(thing[f"{kind}_id"]), query=query)
        except Refused as error:
            return f"{name}: STAYS, remove it by hand ({error})"
        except KubeflowError as error:
            return f"{name}: perhaps it stays ({error})"
        return f"{name}: {done}"
