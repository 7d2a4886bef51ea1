"""Kubeflow Pipelines as an Airflow hook, over REST: neither kfp nor a client of Kubernetes is needed."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from hardcase_provider.rest import ATTEMPTS, Address, KubeflowError, Refused, Request, Unreachable, ask, url_of
from hardcase_provider.runs import UNFINISHED, cancelled_at

DEFAULT_CONNECTION: Final = "kubeflow_default"
# Answers to a request to terminate a run that has ended or is gone: tests/recordings/kubeflow/run-terminate-ended.json.
OVER: Final = frozenset({400, 404, 409})
# Types of KFP as Python reads them from JSON, and as a person calls them.
KINDS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "STRING": ((str,), "text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list"),
    "STRUCT": ((dict,), "an object"),
}
Thing = TypeVar("Thing")


def address_of(connection: Any) -> Address:
    """Read a connection of type `kubeflow`."""
    more = connection.extra_dejson
    if not connection.host:
        raise KubeflowError(f"connection {connection.conn_id!r}: no host; name that of Kubeflow's API")
    return Address(
        url=url_of(connection),
        token=connection.password or "",
        timeout=float(more.get("timeout") or 30),
        pause=float(more.get("pause") or 1),
        **{name: str(more.get(name) or "") for name in ("token_file", "namespace", "experiment", "ui", "ca")},
    )


def engine_of(connection_id: str = DEFAULT_CONNECTION) -> str:
    """Return the engine that a connection names, `kubeflow` or `local`; without a connection, `local`."""
    try:
        connection = BaseHook.get_connection(connection_id)
    except AirflowNotFoundException:
        return "local"
    return str(connection.extra_dejson.get("engine") or "kubeflow")


def chosen_engine(asked: str) -> str:
    """Return `kubeflow` or `local` as asked; `auto` is what the connection names."""
    return engine_of() if asked == "auto" else asked


def filter_by_name(value: str) -> str:
    """Return the filter of a listing by name.

    The API server unescapes a filter once more after the query's own escaping (kubeflow/pipelines 2.17.0,
    tests/recordings/kubeflow/experiments-filter-plus.json and -percent.json).
    """
    return quote(json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": value}]}))


class KubeflowHook(BaseHook):
    """Kubeflow Pipelines.

    Args:
        connection_id: a connection of type `kubeflow`.
        address: where it is, instead of a connection.
    """

    conn_name_attr = "connection_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "kubeflow"
    hook_name = "Kubeflow Pipelines"

    def __init__(self, connection_id: str = DEFAULT_CONNECTION, address: Address | None = None) -> None:
        super().__init__()
        self.connection_id = connection_id
        self._address = address

    @property
    def address(self) -> Address:
        """Return where Kubeflow is; the connection is read once."""
        if self._address is None:
            self._address = address_of(self.get_connection(self.connection_id))
        return self._address

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection for the button of its form, without a pause between attempts."""
        try:
            ask(replace(self.address, pause=0), Request("GET", "healthz"))
        except Exception as error:
            return False, str(error)
        return True, "Kubeflow answers"

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run as it is now."""
        return ask(self.address, Request("GET", f"runs/{run_id}"))

    def runs(self, name: str = "", experiment_id: str = "") -> list[dict[str, Any]]:
        """Return all runs that are not archived, of that name if one is given, the newest first."""
        query = {
            "filter": filter_by_name(name) if name else "",
            "experiment_id": experiment_id,
            "sort_by": "created_at desc",
        }
        return [run for run in self._all("runs", "runs", **query) if run.get("storage_state") != "ARCHIVED"]

    def terminate(self, run_id: str) -> None:
        """Stop a run, unless it has ended or is gone."""
        try:
            ask(self.address, Request("POST", f"runs/{run_id}:terminate"))
        except Refused as error:
            if error.status not in OVER:
                raise
            self.log.info("run %s is not there to be stopped: %s", run_id, error)

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, which is made if there is none."""
        body = {"display_name": name, "namespace": self.address.namespace}
        experiment, _ = self._find_or_make(
            lambda: self._first("experiments", "experiments", name), lambda: self._make("experiments", body)
        )
        return str(experiment["experiment_id"])

    def pipeline(self, name: str) -> dict[str, Any] | None:
        """Return the pipeline of that name."""
        return self._first("pipelines", "pipelines", name)

    def version(self, name: str, package: str = "") -> dict[str, Any]:
        """Return the version of a pipeline to run: that of the package (a file), or the newest there is."""
        if package:
            path = Path(package)
            if not path.is_file():
                raise Refused(f"{path}: no such file; name the compiled pipeline, or none", 404)
            content = path.read_bytes()
            check_package(content, path)
            return self.upload(name, content)
        pipeline = self.pipeline(name)
        if pipeline is None:
            raise Refused(f"Kubeflow has no pipeline {name!r}; upload it, or name a package", 404)
        return self.newest_version(pipeline["pipeline_id"])

    def newest_version(self, pipeline_id: str) -> dict[str, Any]:
        """Return the version of a pipeline that was uploaded last."""
        versions = self._all(f"pipelines/{pipeline_id}/versions", "pipeline_versions", sort_by="created_at desc")
        if not versions:
            raise KubeflowError(f"pipeline {pipeline_id}: it has no version; upload one")
        return versions[0]

    def upload(self, name: str, package: bytes) -> dict[str, Any]:
        """Return the pipeline's version that holds this package, named by its content; upload it if there is none."""
        body = {"display_name": name, "name": name, "namespace": self.address.namespace}
        pipeline, _ = self._find_or_make(lambda: self.pipeline(name), lambda: self._make("pipelines", body))
        pipeline_id, label = pipeline["pipeline_id"], f"{name}-{hashlib.sha256(package).hexdigest()[:12]}"
        send = Request(
            "POST",
            "pipelines/upload_version",
            {"name": label, "display_name": label, "pipelineid": pipeline_id},
            files={"uploadfile": ("pipeline.yaml", package, "application/yaml")},
            repeatable=False,
        )
        version, _ = self._find_or_make(
            lambda: self._first(f"pipelines/{pipeline_id}/versions", "pipeline_versions", label),
            lambda: ask(self.address, send),
        )
        return version

    def launch(
        self, key: str, version: Mapping[str, Any], parameters: Mapping[str, Any], account: str = ""
    ) -> tuple[dict[str, Any], bool]:
        """Start one run for one idempotency key, or find it.

        The key is the run's name. If an active or successful run with that name exists, it is returned. A run that
        failed, was cancelled or is being stopped is followed by another.

        Args:
            key: says what is to be done: two keys, two runs.
            version: of the pipeline.
            parameters: of the pipeline.
            account: service account of the run's pods; Kubeflow's default if empty.

        Returns:
            the run, and whether this call started it.
        """
        check_parameters(version, parameters)
        experiment = self.experiment(self.address.experiment) if self.address.experiment else ""
        body = {
            "display_name": key,
            "description": "Started by Airflow; its name is its idempotency key.",
            "experiment_id": experiment,
            "pipeline_version_reference": {name: version[name] for name in ("pipeline_id", "pipeline_version_id")},
            "runtime_config": {"parameters": dict(parameters)},
            "service_account": account,
        }
        run, started = self._find_or_make(
            lambda: self._oldest(key, experiment), lambda: self._make("runs", {k: v for k, v in body.items() if v})
        )
        if not started:
            return run, False
        # Two launches that looked at the same moment both found nothing: the older run stays.
        oldest = self._oldest(key, experiment) or run
        if oldest["run_id"] != run["run_id"]:
            self.log.warning("run %s was started twice; stopping %s", oldest["run_id"], run["run_id"])
            self.terminate(run["run_id"])
        return oldest, oldest["run_id"] == run["run_id"]

    def _oldest(self, key: str, experiment_id: str) -> dict[str, Any] | None:
        usable = [
            run
            for run in self.runs(key, experiment_id)
            if run.get("state") in UNFINISHED | {"SUCCEEDED", None} and not cancelled_at(run)
        ]
        return min(usable, key=lambda run: (run.get("created_at", ""), run["run_id"]), default=None)

    def _make(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return ask(self.address, Request("POST", path, body=body, repeatable=False))

    def _find_or_make(self, find: Callable[[], Thing | None], make: Callable[[], Thing]) -> tuple[Thing, bool]:
        """Look before each POST whether an earlier one, whose answer was lost, or somebody else's made the thing."""
        problem: KubeflowError | None = None
        for attempt in range(ATTEMPTS):
            if (thing := find()) is not None:
                return thing, False
            try:
                return make(), True
            except Unreachable as error:
                problem = error
            except Refused as error:
                if error.status != 409:
                    raise
                problem = error
            time.sleep(self.address.pause * 2**attempt)
        raise problem or AssertionError

    def _first(self, path: str, key: str, name: str) -> dict[str, Any] | None:
        return next(iter(self._all(path, key, filter=filter_by_name(name))), None)

    def _all(self, path: str, key: str, **query: str) -> list[dict[str, Any]]:
        things: list[dict[str, Any]] = []
        token = ""
        if path in ("pipelines", "experiments") or (path == "runs" and not query.get("experiment_id")):
            query["namespace"] = self.address.namespace
        while True:
            page = ask(self.address, Request("GET", path, {**query, "page_size": 100, "page_token": token}))
            things += page.get(key) or []
            if not (token := page.get("next_page_token", "")):
                return things


def check_package(content: bytes, path: Path) -> None:
    """Check that a file is a compiled pipeline before it is sent.

    The API server reads a file that is no YAML for ever (kubeflow/pipelines 2.17.0,
    backend/src/apiserver/template/template.go:75).

    Raises:
        Refused: it is not.
    """
    import yaml

    try:
        spec = [*yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None][0]
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{path}: not YAML ({reason}); `hardcase compile` writes a pipeline", 400) from error
    if not isinstance(spec, dict) or not {"pipelineInfo", "root", "deploymentSpec"} <= set(spec):
        raise Refused(f"{path}: not a compiled pipeline; `hardcase compile` writes a pipeline", 400)


def check_parameters(version: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Compare parameters with those of the pipeline version, if it names them.

    Raises:
        Refused: a parameter that it does not know, one it needs and is not given, or a value it does not take.
    """
    spec = version.get("pipeline_spec") or {}
    root = (spec.get("pipeline_spec") or spec).get("root")
    if not isinstance(root, Mapping):
        return
    known = (root.get("inputDefinitions") or {}).get("parameters") or {}
    unknown = sorted(set(parameters) - set(known))
    needed = {name for name, about in known.items() if not (about.get("isOptional") or "defaultValue" in about)}
    missing = sorted(needed - set(parameters))
    problems = [f"it takes no {', '.join(unknown)}"] if unknown else []
    problems += [f"it needs {', '.join(missing)}"] if missing else []
    problems += [
        f"{name} is {json.dumps(value)}, not {wanted}"
        for name, value in sorted(parameters.items())
        if name in known and (wanted := _wanted(value, known[name]))
    ]
    if problems:
        raise Refused(
            f"pipeline version {version.get('display_name')}: {' and '.join(problems)}; "
            f"it takes {', '.join(sorted(known)) or 'no parameters'}",
            400,
        )


def _wanted(value: Any, about: Mapping[str, Any]) -> str:
    """Return what a parameter should be, if the value is not that; else nothing."""
    if (literals := about.get("literals")) and value not in literals:
        return "one of " + ", ".join(str(each) for each in literals)
    kinds, words = KINDS.get(about.get("parameterType", ""), ((object,), ""))
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return "" if fits else words
