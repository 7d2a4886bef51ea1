"""Kubeflow Pipelines as an Airflow hook, over REST: neither kfp nor a client of Kubernetes is needed."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from hardcase_provider.rest import ATTEMPTS, Address, KubeflowError, Refused, Request, Unreachable, ask, url_of

DEFAULT_CONNECTION: Final = "kubeflow_default"
GOING: Final = frozenset({"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED"})
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# Nodes of the workflow that are no steps: what Kubeflow's compiler for Argo adds (upstream's
# backend/src/v2/compiler/argocompiler), and groups of steps. Argo numbers attempts and iterations: `executor(0)`.
INNER: Final = re.compile(
    r"(root|executor|.*-driver|iteration|iteration-item|.*system-(container|dag)-.*"
    r"|(for-loop|condition|condition-branches|exit-handler)-\d+)(\(.*\))?"
)
# What values of KFP's types are in JSON, and what a person calls them.
KINDS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "STRING": ((str,), "text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list"),
    "STRUCT": ((dict,), "an object"),
}
Made = TypeVar("Made")


def address_of(connection: Any) -> Address:
    """What a connection of type `kubeflow` says."""
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
    """The engine that a connection names: `kubeflow` or `local`; without a connection, `local`."""
    try:
        connection = BaseHook.get_connection(connection_id)
    except AirflowNotFoundException:
        return "local"
    return str(connection.extra_dejson.get("engine") or "kubeflow")


def chosen_engine(asked: str) -> str:
    """`kubeflow` or `local`, as asked; `auto` is as the connection says."""
    return engine_of() if asked == "auto" else asked


def named(value: str) -> str:
    """Filter of a listing by name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": value}]})


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
        """Where it is; the connection is read once."""
        if self._address is None:
            self._address = address_of(self.get_connection(self.connection_id))
        return self._address

    def test_connection(self) -> tuple[bool, str]:
        """For the button of the connection's form."""
        try:
            self.health()
        except Exception as error:
            return False, str(error)
        return True, "Kubeflow answers"

    def health(self) -> dict[str, Any]:
        """Its own word on how it is."""
        return ask(self.address, Request("GET", "healthz"))

    def run(self, run_id: str) -> dict[str, Any]:
        """A run as it is now."""
        return ask(self.address, Request("GET", f"runs/{run_id}"))

    def runs(self, name: str = "", experiment_id: str = "") -> list[dict[str, Any]]:
        """All runs, of that name if one is given, the newest first; not the archived."""
        query = {"filter": named(name) if name else "", "experiment_id": experiment_id, "sort_by": "created_at desc"}
        return [run for run in self._all("runs", "runs", **query) if run.get("storage_state") != "ARCHIVED"]

    def terminate(self, run_id: str) -> None:
        """Stop a run; one that ended or is gone is left so."""
        try:
            ask(self.address, Request("POST", f"runs/{run_id}:terminate"))
        except Refused as error:
            if error.status not in (400, 404, 409):
                raise
            self.log.info("run %s is not there to be stopped: %s", run_id, error)

    def experiment(self, name: str) -> str:
        """Id of the experiment; made if there is none."""
        body = {"display_name": name, "namespace": self.address.namespace}
        found, _ = self._found_or_made(
            lambda: self._first("experiments", "experiments", name), lambda: self._make("experiments", body)
        )
        return str(found["experiment_id"])

    def pipeline(self, name: str) -> dict[str, Any] | None:
        """The pipeline of that name."""
        return self._first("pipelines", "pipelines", name)

    def version(self, name: str, package: str = "") -> dict[str, Any]:
        """The version of a pipeline to run: that of the package (a file), or the newest there is."""
        if package:
            path = Path(package)
            if not path.is_file():
                raise Refused(f"{path}: no such file; name the compiled pipeline, or none", 404)
            return self.upload(name, path.read_bytes())
        pipeline = self.pipeline(name)
        if pipeline is None:
            raise Refused(f"Kubeflow has no pipeline {name!r}; upload it, or name a package", 404)
        return self.newest_version(pipeline["pipeline_id"])

    def newest_version(self, pipeline_id: str) -> dict[str, Any]:
        """The version of a pipeline that was uploaded last."""
        versions = self._all(f"pipelines/{pipeline_id}/versions", "pipeline_versions", sort_by="created_at desc")
        if not versions:
            raise KubeflowError(f"pipeline {pipeline_id}: it has no version; upload one")
        return versions[0]

    def upload(self, name: str, package: bytes) -> dict[str, Any]:
        """The pipeline's version that holds this package; uploaded unless it is there. It is named by its content."""
        body = {"display_name": name, "name": name, "namespace": self.address.namespace}
        pipeline, _ = self._found_or_made(lambda: self.pipeline(name), lambda: self._make("pipelines", body))
        pipeline_id, label = pipeline["pipeline_id"], f"{name}-{hashlib.sha256(package).hexdigest()[:12]}"
        send = Request(
            "POST",
            "pipelines/upload_version",
            {"name": label, "display_name": label, "pipelineid": pipeline_id},
            files={"uploadfile": ("pipeline.yaml", package, "application/yaml")},
            repeatable=False,
        )
        version, _ = self._found_or_made(
            lambda: self._first(f"pipelines/{pipeline_id}/versions", "pipeline_versions", label),
            lambda: ask(self.address, send),
        )
        return version

    def launch(
        self, key: str, version: Mapping[str, Any], parameters: Mapping[str, Any], service_account: str = ""
    ) -> tuple[dict[str, Any], bool]:
        """One run for one key, however often and by however many it is asked for.

        The key is the run's name. A run of that name that goes on, or has succeeded, is the one; a failed or cancelled
        one is followed by another.

        Args:
            key: says what is to be done: two keys, two runs.
            version: of the pipeline.
            parameters: of the pipeline.
            service_account: of the run's pods; Kubeflow's default if empty.

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
            "service_account": service_account,
        }
        made, started = self._found_or_made(
            lambda: self._chosen(key, experiment), lambda: self._make("runs", {k: v for k, v in body.items() if v})
        )
        if not started:
            return made, False
        # Two who looked at the same moment both found nothing: the elder's run stays.
        chosen = self._chosen(key, experiment) or made
        if chosen["run_id"] != made["run_id"]:
            self.log.warning("run %s was started twice; stopping %s", chosen["run_id"], made["run_id"])
            self.terminate(made["run_id"])
        return chosen, chosen["run_id"] == made["run_id"]

    def _chosen(self, key: str, experiment_id: str) -> dict[str, Any] | None:
        found = [run for run in self.runs(key, experiment_id) if run.get("state") in GOING | {"SUCCEEDED", None}]
        return min(found, key=lambda run: (run.get("created_at", ""), run["run_id"]), default=None)

    def _make(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return ask(self.address, Request("POST", path, body=body, repeatable=False))

    def _found_or_made(self, find: Callable[[], Made | None], make: Callable[[], Made]) -> tuple[Made, bool]:
        """A POST whose answer was lost, or that came second, is looked for before it is sent again."""
        problem: KubeflowError | None = None
        for attempt in range(ATTEMPTS):
            if (found := find()) is not None:
                return found, False
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
        return next(iter(self._all(path, key, filter=named(name))), None)

    def _all(self, path: str, key: str, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token = ""
        if path in ("pipelines", "experiments") or (path == "runs" and not query.get("experiment_id")):
            query["namespace"] = self.address.namespace
        while True:
            page = ask(self.address, Request("GET", path, {**query, "page_size": 100, "page_token": token}))
            found += page.get(key) or []
            if not (token := page.get("next_page_token", "")):
                return found


def check_parameters(version: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Say before the launch what the pipeline would not take, if its version tells what it takes.

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
    """What a parameter should be, if the value is not that; else nothing."""
    if (literals := about.get("literals")) and value not in literals:
        return "one of " + ", ".join(str(each) for each in literals)
    kinds, words = KINDS.get(about.get("parameterType", ""), ((object,), ""))
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return "" if fits else words


def failures(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Steps of a run that failed, the first to end first, each with what Kubeflow tells of it.

    Up to KFP 2.17 the server leaves `error` of a task empty (kubeflow/pipelines #14007), so the state history and the
    run are asked too.
    """
    tasks = [task for task in (run.get("run_details") or {}).get("task_details") or [] if task.get("state") == "FAILED"]
    tasks.sort(key=lambda task: (task.get("end_time") or "9", task.get("start_time") or ""))
    own = [task for task in tasks if not _inner(task, run)] or tasks
    found = []
    for task in own:
        told = _told(task) or next((_told(other) for other in tasks if _told(other)), "") or _told(run)
        pods = [child["pod_name"] for child in task.get("child_tasks") or [] if child.get("pod_name")]
        pod = task.get("pod_name") or next(iter(pods), "")
        where = f"see the log of pod {pod}" if pod else "see its log in Kubeflow"
        found.append({"step": str(task.get("display_name") or task.get("task_id")), "message": told or where})
    return found


def _inner(task: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    name = str(task.get("display_name") or "")
    return bool(INNER.fullmatch(name)) or name in (run.get("display_name"), run.get("run_id"))


def _told(thing: Mapping[str, Any]) -> str:
    places = [thing, *reversed(thing.get("state_history") or [])]
    return next((str(place["error"]["message"]) for place in places if (place.get("error") or {}).get("message")), "")


def digested(run: Mapping[str, Any], address: Address) -> dict[str, Any]:
    """A run in brief, small enough for XCom."""
    tasks = (run.get("run_details") or {}).get("task_details") or []
    return {
        **{name: run.get(name) for name in ("run_id", "display_name", "state", "created_at", "finished_at")},
        "steps": {task["display_name"]: task.get("state") for task in tasks if task.get("display_name")},
        "failures": failures(run),
        "told": _told(run),
        "link": address.run_link(str(run.get("run_id"))),
    }
