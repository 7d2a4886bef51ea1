"""Launch a pipeline: one version for one content, one run for one idempotency key, one schedule for one name.

Each rule looks before it creates, because the answer to an earlier POST may have been lost and somebody else may have
created the same. The key is the name of the run. If an active or successful run of that name exists, it is returned;
a run that failed or was cancelled is followed by another.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from hardcase.kubeflow.address import Address, KubeflowError, Refused, Unreachable
from hardcase.kubeflow.requests import ATTEMPTS, Flow, Request, ask
from hardcase.kubeflow.runs import UNFINISHED, cancelled_at, inner_spec, list_steps, parse_moment

PAGE: Final = 100
# Answers to a request to terminate a run that has ended or is gone: run-terminate-ended.json in
# tests/recordings/kubeflow.
ENDED_OR_GONE: Final = frozenset({400, 404, 409})
# Types of KFP as Python reads them from JSON, and as a person calls them.
KINDS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "STRING": ((str,), "text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list in JSON"),
    "STRUCT": ((dict,), "an object in JSON"),
}
Thing: TypeAlias = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be launched."""

    key: str  # name of the run, or of the schedule: two keys, two runs
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline, typed
    experiment: str = ""  # name of the one that the run belongs to; Kubeflow's default if empty
    service_account: str = ""  # of the run's pods; Kubeflow's default if empty
    cron: str = ""  # when it is to run again and again, six fields; once, now, if empty
    concurrency: int = 1  # how many runs of the schedule may be active at once


@dataclass(frozen=True)
class Launched:
    """What came of an order."""

    thing: Thing  # the run, or the recurring run of a schedule
    created: bool  # whether this launch created it, or changed the schedule
    version: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline
    uploaded: bool = False  # whether this launch uploaded the version


def name_version(pipeline: str, content: bytes) -> str:
    """Return the name of the pipeline version that has this content."""
    return f"{pipeline}-{hashlib.sha256(content).hexdigest()[:12]}"


def check_namespace(address: Address) -> Flow[None]:
    """Check that the address names a namespace if, and only if, the installation is for several users.

    Raises:
        Refused: it does not. An installation for one user would ignore the namespace.
    """
    several = (yield from ask(Request("GET", "healthz"), address)).get("multi_user")
    if several is False and address.namespace:
        raise Refused(
            f"Kubeflow at {address.url} is installed for a single user and ignores the namespace "
            f"{address.namespace!r}; the run would start in Kubeflow's own namespace, as its account",
            about="namespace",
        )
    if several and not address.namespace:
        raise Refused(f"Kubeflow at {address.url} is installed for several users; name a namespace", about="namespace")


def upload(name: str, content: bytes, address: Address, description: str = "") -> Flow[tuple[Thing, bool]]:
    """Return the version of a pipeline that holds this content, and whether this call uploaded it.

    Args:
        content: compiled pipeline. The caller checks that it is one: the API server reads a file that is no YAML for
            ever (kubeflow/pipelines 2.17.0, backend/src/apiserver/template/template.go:75).
    """
    body = {"display_name": name, "name": name, "description": description, "namespace": address.namespace}
    pipeline, _ = yield from find_or_create(
        lambda: find_named("pipelines", name, address), Request("POST", "pipelines", body=body), address
    )
    listing, label = f"pipelines/{pipeline['pipeline_id']}/versions", name_version(name, content)
    query = {"name": label, "display_name": label, "pipelineid": pipeline["pipeline_id"], "description": description}
    files = {"uploadfile": ("pipeline.yaml", content, "application/yaml")}
    return (
        yield from find_or_create(
            lambda: find_named(listing, label, address),
            Request("POST", "pipelines/upload_version", query, files=files),
            address,
        )
    )


def find_newest_version(name: str, address: Address) -> Flow[Thing]:
    """Return the version of a pipeline that was uploaded last.

    Raises:
        Refused: there is none.
    """
    pipeline = yield from find_named("pipelines", name, address)
    if pipeline is None:
        raise Refused(f"Kubeflow has no pipeline {name!r}; upload it, or name a package", 404)
    listing = f"pipelines/{pipeline['pipeline_id']}/versions"
    versions = yield from list_all(listing, address, sort_by="created_at desc")
    if not versions:
        raise Refused(f"pipeline {name!r} has no version; upload one", 404)
    return versions[0]


def find_steps(run: Mapping[str, Any], address: Address) -> Flow[dict[str, bool]]:
    """Return the steps of a run's pipeline as `list_steps` does; none if Kubeflow does not show that version."""
    if not (version := run.get("pipeline_version_reference")):
        return {}
    path = f"pipelines/{version['pipeline_id']}/versions/{version['pipeline_version_id']}"
    try:
        return list_steps((yield from ask(Request("GET", path), address)).get("pipeline_spec") or {})
    except Refused as error:
        if error.status not in (403, 404):
            raise
        return {}


def launch(order: Order, version: Mapping[str, Any], address: Address) -> Flow[Launched]:
    """Start what is ordered, or find it, however often it is asked for."""
    experiment = {"display_name": order.experiment, "namespace": address.namespace}
    experiment_id = ""
    if order.experiment:
        thing, _ = yield from find_or_create(
            lambda: find_named("experiments", order.experiment, address),
            Request("POST", "experiments", body=experiment),
            address,
        )
        experiment_id = thing["experiment_id"]
    body = {
        "display_name": order.key,
        "experiment_id": experiment_id,
        "pipeline_version_reference": {name: version[name] for name in ("pipeline_id", "pipeline_version_id")},
        "runtime_config": {"parameters": dict(order.parameters)},
        "service_account": order.service_account,
    }
    launched = yield from (keep_schedule if order.cron else start_run)(order, body, address)
    return replace(launched, version=version)


def launch_package(order: Order, name: str, content: bytes, description: str, address: Address) -> Flow[Launched]:
    """Upload a compiled pipeline if it is new, and launch it: `check_namespace`, `upload` and `launch`."""
    yield from check_namespace(address)
    version, uploaded = yield from upload(name, content, address, description)
    return replace((yield from launch(order, version, address)), uploaded=uploaded)


def start_run(order: Order, body: Mapping[str, Any], address: Address) -> Flow[Launched]:
    """Start one run for one key, or find it."""
    body = {**body, "description": "Started by hardcase; its name is its idempotency key."}
    run, created = yield from find_or_create(
        lambda: find_oldest_usable(order.key, address), Request("POST", "runs", body=body), address
    )
    if not created:
        return Launched(run, False)
    # Two launches that looked at the same moment both found nothing: the older run stays.
    oldest = (yield from find_oldest_usable(order.key, address)) or run
    if oldest["run_id"] != run["run_id"]:
        logger.warning("run %s was started twice; stopping %s", oldest["run_id"], run["run_id"])
        yield from terminate(run["run_id"], address)
    return Launched(oldest, oldest["run_id"] == run["run_id"])


def find_oldest_usable(key: str, address: Address) -> Flow[Thing | None]:
    """Return the oldest run of that key that is active or successful."""
    runs = yield from list_all("runs", address, filter=filter_by_name(key))
    usable = [
        run
        for run in runs
        if run.get("state") in UNFINISHED | {"SUCCEEDED", None}
        and run.get("storage_state") != "ARCHIVED"
        and not cancelled_at(run)
    ]
    return min(usable, key=lambda run: (parse_moment(run.get("created_at"), 0), run["run_id"]), default=None)


def terminate(run_id: str, address: Address) -> Flow[bool]:
    """Stop a run; return whether it was active."""
    try:
        yield from ask(Request("POST", f"runs/{run_id}:terminate"), address)
    except Refused as error:
        if error.status not in ENDED_OR_GONE:
            raise
        logger.info("run %s is not there to be stopped: %s", run_id, error)
        return False
    return True


def keep_schedule(order: Order, body: Mapping[str, Any], address: Address) -> Flow[Launched]:
    """Keep one recurring run of that name.

    The API cannot change a recurring run: another is created, and only then is the old one deleted.
    """
    wanted = {
        **body,
        "description": "Kept by hardcase launch, which knows it by its name.",
        "mode": "ENABLE",
        "trigger": {"cron_schedule": {"cron": order.cron}},
        "max_concurrency": str(order.concurrency),
        "no_catchup": True,
    }

    def find() -> Flow[Thing | None]:
        schedules = yield from list_all("recurringruns", address, filter=filter_by_name(order.key))
        return next((each for each in schedules if describe_schedule(each, order) == described), None)

    described = describe_schedule(wanted, order)
    before = yield from list_all("recurringruns", address, filter=filter_by_name(order.key))
    schedule, changed = yield from find_or_create(find, Request("POST", "recurringruns", body=wanted), address)
    own = f"recurringruns/{schedule['recurring_run_id']}"
    if schedule.get("status") == "DISABLED":
        yield from ask(Request("POST", f"{own}:enable"), address)
        changed = True
    for other in before:
        if other["recurring_run_id"] != schedule["recurring_run_id"]:
            yield from ask(Request("DELETE", f"recurringruns/{other['recurring_run_id']}"), address)
            changed = True
    return Launched(schedule, changed)


def describe_schedule(schedule: Mapping[str, Any], order: Order) -> list[Any]:
    """Return all of a schedule that an order decides.

    Kubeflow fills in a service account where none is ordered, `default-editor` or another, as it was installed
    (recurring-create-no-account.json; kubeflow/pipelines 2.17.0, backend/src/apiserver/template/template.go:319).
    """
    return [
        schedule["trigger"].get("cron_schedule"),
        (schedule.get("pipeline_version_reference") or {}).get("pipeline_version_id"),
        (schedule.get("runtime_config") or {}).get("parameters") or {},
        schedule.get("experiment_id") if order.experiment else "",
        order.service_account and schedule.get("service_account"),
        str(schedule.get("max_concurrency")),
        bool(schedule.get("no_catchup")),
    ]


def find_or_create(
    find: Callable[[], Flow[Thing | None]], create: Request, address: Address
) -> Flow[tuple[Thing, bool]]:
    """Return a thing and whether this call created it; look before each POST whether it is there."""
    problem: KubeflowError | None = None
    for attempt in range(ATTEMPTS):
        if (thing := (yield from find())) is not None:
            return thing, False
        try:
            return (yield from ask(create, address)), True
        except Unreachable as error:
            problem = error
        except Refused as error:
            if error.status != 409:
                raise
            problem = Unreachable(str(error))
        yield address.pause * 2**attempt
    raise problem or AssertionError


def find_named(path: str, name: str, address: Address) -> Flow[Thing | None]:
    """Return the first of a listing that has this name."""
    return next(iter((yield from list_all(path, address, filter=filter_by_name(name)))), None)


def list_all(path: str, address: Address, **query: Any) -> Flow[list[Thing]]:
    """Return all pages of a listing."""
    key = {"recurringruns": "recurringRuns"}.get(path, "pipeline_versions" if "/" in path else path)
    namespace = "" if "/" in path else address.namespace
    things: list[Thing] = []
    token = ""
    while True:
        given = {**query, "namespace": namespace, "page_size": PAGE, "page_token": token}
        page = yield from ask(Request("GET", path, given), address)
        things += page.get(key) or []
        if not (token := page.get("next_page_token") or ""):
            return things


def filter_by_name(name: str) -> str:
    """Return the filter of a listing by name.

    Kubeflow unescapes it once more after the query's own escaping (kubeflow/pipelines 2.17.0,
    backend/src/apiserver/server/list_request_util.go:143), so a name with `+` would not be found, and one with `%`
    would be refused.
    """
    return quote(json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}))


def list_inputs(version: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the parameters of a pipeline version by name, as its spec defines them."""
    root = inner_spec(version.get("pipeline_spec") or {}).get("root") or {}
    inputs: Mapping[str, Mapping[str, Any]] = (root.get("inputDefinitions") or {}).get("parameters") or {}
    return inputs


def check_parameters(pipeline: str, inputs: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Any]) -> None:
    """Compare parameters with those that a pipeline takes.

    Raises:
        Refused: a parameter that it does not know, one it needs and is not given, or a value it does not take.
    """
    required = {name for name, about in inputs.items() if not ("defaultValue" in about or about.get("isOptional"))}
    unknown, missing = sorted(set(parameters) - set(inputs)), sorted(required - set(parameters))
    problems = [f"it takes no {', '.join(unknown)}"] if unknown else []
    problems += [f"it needs {', '.join(missing)}"] if missing else []
    problems += [
        f"{name} is {json.dumps(value)}, not {describe_kind(inputs[name])}"
        for name, value in sorted(parameters.items())
        if name in inputs and not _fits(value, inputs[name])
    ]
    if problems:
        offered = [f"{name} ({describe_kind(about)}{_default(about)})" for name, about in sorted(inputs.items())]
        takes = "; ".join(offered) or "no parameters"
        raise Refused(f"pipeline {pipeline}: {' and '.join(problems)}. It takes {takes}", 400)


def describe_kind(about: Mapping[str, Any]) -> str:
    """Return what a parameter takes."""
    if literals := about.get("literals"):
        return "one of " + ", ".join(str(literal) for literal in literals)
    kind = str(about.get("parameterType"))
    return KINDS[kind][1] if kind in KINDS else kind


def _default(about: Mapping[str, Any]) -> str:
    if "defaultValue" not in about:
        return ""
    value = about["defaultValue"]  # protobuf has no whole numbers
    return f", by default {json.dumps(int(value) if about['parameterType'] == 'NUMBER_INTEGER' else value)}"


def _fits(value: Any, about: Mapping[str, Any]) -> bool:
    kinds, _ = KINDS.get(about.get("parameterType", ""), ((object,), ""))
    literals = about.get("literals")
    return (
        isinstance(value, kinds)
        and (bool in kinds or not isinstance(value, bool))
        and (not literals or value in literals)
    )
