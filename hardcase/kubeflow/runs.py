"""Read a run: its steps and their states, what it waits for, and how it ended.

Kubeflow's details are the nodes of Argo's workflow by display name: of a step `sft` there are `sft`, `sft(0)`,
`sft-driver`, `executor` and `executor(0)`, besides groups and the workflow itself, so what is a step is read from the
pipeline. Child tasks name nodes, not pods, so no pod can be named here. The details freeze when Argo begins to
compress a large workflow, and hold no reason of a failure (kubeflow/pipelines #14007). The steps' own records and the
record of the run have both, so these decide where the caller has them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any, Final, TypeAlias

UNFINISHED: Final = frozenset({"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED"})
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
AT_WORK: Final = frozenset({"PENDING", "RUNNING"})
DRIVER: Final = "-driver"
NOT_REACHED: Final = "not reached"
UNKNOWN: Final = "unknown"
# Why a step whose last record says that it runs is not running any more.
KILLED: Final = "its pod was killed: out of memory, out of time, or lost with its node"
# A pod usually starts within seconds. After this long the log says that it waits.
SECONDS_PENDING: Final = 120
Run: TypeAlias = Mapping[str, Any]
Node: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        state: `pending` until its own process works, `running`, `retrying`, `succeeded`, `cached`, `failed`, `refused`
            (its input or configuration), `cancelled`, `not reached`, or `unknown`, where no source says it.
    """

    name: str  # of the step
    state: str
    seconds: float = 0  # of its work, until now
    message: str = ""  # why it failed, in its own words; empty if it left none


def inner_spec(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pipeline's own specification: with settings for Kubernetes, it is one level down in a version."""
    inner: Mapping[str, Any] = spec.get("pipeline_spec") or spec
    return inner


def list_steps(spec: Mapping[str, Any]) -> dict[str, bool]:
    """Return the steps of a pipeline in the order in which they run, including those of nested pipelines.

    Returns:
        Of each step whether it runs however the others end, as an exit handler does.
    """
    spec = inner_spec(spec)
    components = spec.get("components") or {}

    def walk(component: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        tasks = (component.get("dag") or {}).get("tasks") or {}
        graph = {name: task.get("dependentTasks") or () for name, task in tasks.items()}
        for name in TopologicalSorter(graph).static_order():
            inner = components.get(tasks[name]["componentRef"]["name"]) or {}
            if "dag" in inner:
                yield from walk(inner)
            else:
                yield name, "triggerPolicy" in tasks[name]

    return dict(walk(spec.get("root") or {}))


def is_frozen(run: Run) -> bool:
    """Return whether a run ended, and Kubeflow's details have not noticed."""
    return run.get("state") in ENDED and any(node.get("state") in AT_WORK for node in _nodes(run))


def cancelled_at(run: Run) -> str:
    """Return when somebody terminated the run, if that is how it ends; else nothing.

    KFP 2.17 calls such a run `CANCELING` first and `FAILED` at its end (run-terminated-final.json in
    tests/recordings/kubeflow). A run that is tried again after that has a later `RUNNING` in its history.
    """
    history = [event for event in run.get("state_history") or [] if event.get("state") not in ENDED]
    last = history[-1] if history else {}
    if run.get("state") == "SUCCEEDED" or "CANCEL" not in f"{run.get('state')} {last.get('state')}":
        return ""
    return str(last.get("update_time") or run.get("finished_at") or datetime.now(UTC).isoformat())


def list_progress(
    run: Run,
    names: Mapping[str, bool],
    records: Mapping[str, Mapping[str, Any]],
    now: float,
    cancelled: bool = False,
) -> list[Step]:
    """Return the steps of a run in order: those that began, and once it has ended all of them."""
    over = run.get("state") in ENDED
    cancelled = cancelled or bool(cancelled_at(run))
    # A group that is tried again creates its nodes again: the last one to start counts.
    ordered = sorted(_nodes(run), key=lambda node: parse_moment(node.get("start_time"), now))
    nodes = {node["display_name"]: node for node in ordered}
    ahead = [name for name, closing in names.items() if not closing]
    reached = max((position for position, name in enumerate(ahead) if name in records), default=0)
    steps = []
    for name in names:
        node, driver = nodes.get(name, {}), nodes.get(name + DRIVER, {})
        if not node.get("state") and driver.get("state") == "FAILED":
            node = driver
        if record := records.get(name):
            steps.append(_read_record(record, node, over, now, cancelled))
            continue
        passed = run.get("state") == "SUCCEEDED" or name in ahead[:reached]
        state = _find_state(node, run, passed, bool(records) and not names[name])
        state = "cancelled" if state == "failed" and cancelled else state
        if state == NOT_REACHED and driver.get("state") in AT_WORK and not over:
            state, node = "pending", driver
        timed = state in ("pending", "running", "succeeded", "failed", "cancelled")
        steps.append(Step(name, state, _seconds(node, now) if node and timed else 0))
    return [step for step in steps if over or step.state != NOT_REACHED]


def _read_record(record: Mapping[str, Any], node: Node, over: bool, now: float, cancelled: bool) -> Step:
    started, ended = (parse_moment(record[name], now) for name in ("started", "ended"))
    state, message = str(record["state"]), str(record["message"])
    broken = node.get("state") == "FAILED"
    if state == "running" and (over or broken):
        state, message = ("cancelled", "") if cancelled else ("failed", KILLED)
    elif state == "failed" and not over and not broken:
        state = "retrying"
    return Step(str(record["step"]), state, max(0.0, ended - started), message)


def _find_state(node: Node, run: Run, passed: bool, recorded: bool) -> str:
    """Return the state of a step without a record: served from the cache, not yet at work, or what Kubeflow says."""
    state, over = node.get("state"), run.get("state") in ENDED
    if state == "SUCCEEDED" or (passed and (recorded or not node or state in AT_WORK)):
        return "cached" if recorded else "succeeded"
    if state in AT_WORK:
        return (NOT_REACHED if recorded else UNKNOWN) if over else ("pending" if recorded else "running")
    if state is None:
        return UNKNOWN if not node and is_frozen(run) and not recorded else NOT_REACHED
    return {"CANCELED": "cancelled", "SKIPPED": NOT_REACHED}.get(state, str(state).lower())


def find_failure(run: Run, steps: Sequence[Step], namespace: str) -> dict[str, Any]:
    """Return the `step` at which a run failed, a `message`, and whether the step `refused` its input.

    The message is the step's own, else Kubeflow's, else the command that shows the logs. Only the step knows whether it
    refused its input: `refused` is None without a word of it or of Kubeflow, unless no step began.
    """
    for state in ("refused", "failed"):
        for step in steps:
            if step.state == state and step.message:
                return {"step": step.name, "message": step.message, "refused": state == "refused"}
    failed = [node for node in _nodes(run) if node.get("state") == "FAILED"]
    never = float("inf")
    failed.sort(key=lambda node: tuple(parse_moment(node.get(end), never) for end in ("end_time", "start_time")))
    names = {name: step.name for step in steps for name in (step.name, step.name + DRIVER)}
    own = [names[node["display_name"]] for node in failed if node["display_name"] in names]
    # Selected by a label, because what Kubeflow calls pod_name is the id of a node.
    logs = f"its log: kubectl -n {namespace or 'kubeflow'} logs {select_pods(run)} --all-containers --prefix"
    message = next(filter(None, map(_message, [*failed, run])), "")
    known = message or all(step.state == NOT_REACHED for step in steps)
    return {"step": next(iter(own), ""), "message": message or logs, "refused": False if known else None}


def select_pods(run: Run) -> str:
    """Return the option of kubectl that selects the pods of a run."""
    return f"-l pipeline/runid={run.get('run_id')}"


def describe_progress(run: Run, steps: Sequence[Step], namespace: str, now: float) -> str:
    """Return the run's state, the steps at work, and since when a pod has been waiting for a node."""
    at_work = [step.name for step in steps if step.state in ("pending", "running", "retrying")]
    words = f"{run.get('state')}, at work: {', '.join(at_work) or 'no step yet'}"
    # Argo's node of an unschedulable pod is Pending (argo-workflows v4.0.5 workflow/controller/operator.go:1409); the
    # step's own node is Running meanwhile.
    pending = [str(node.get("start_time")) for node in _nodes(run) if node.get("state") == "PENDING"]
    since = min(pending, default="")
    if since and now - parse_moment(since, now) >= SECONDS_PENDING:
        words += f"; a pod has been pending since {since}, which `kubectl -n {namespace or 'kubeflow'} describe pods "
        words += f"{select_pods(run)}` explains"
    return words


def summarise_run(
    run: Run, steps: Sequence[Step], *, link: str, namespace: str = "", cancelled: bool = False
) -> dict[str, Any]:
    """Return a run in brief, as JSON small enough for Airflow's XCom."""
    moment = cancelled_at(run) or (str(run.get("finished_at")) if cancelled else "")
    return {
        **{name: run.get(name) for name in ("run_id", "display_name", "state", "created_at", "finished_at")},
        "steps": {step.name: step.state for step in steps},
        "failure": None if run.get("state") in (None, "SUCCEEDED") else find_failure(run, steps, namespace),
        "cancelled_at": moment,
        "link": link,
    }


def explain_end(summary: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a run ended, and a message unless it succeeded.

    The record of the run decides where it has an answer, because Kubeflow calls a terminated run failed and does not
    know the gate.

    Returns:
        `succeeded`, `rejected` (by the gate), `cancelled`, `refused` (its input or configuration) or `failed`.
    """
    state, run, steps = summary["state"], f"run {summary['run_id']}", summary["steps"]
    if state == "SUCCEEDED":
        gate = record.get("gate") or {}
        if gate.get("verdict", "promoted") != "promoted":
            return "rejected", f"rejected by the gate: {'; '.join(gate['reasons'])}"
        return "succeeded", ""
    error = record.get("error") or {}
    if summary["cancelled_at"] or record.get("status") == "cancelled":
        step = next((name for name, each in steps.items() if each == "cancelled"), error.get("step"))
        return "cancelled", f"{run} was cancelled" + (f" at {step}" if step else "")
    failure = summary["failure"] or {"step": "", "message": "Kubeflow gives no reason", "refused": None}
    refused = failure["refused"] or error.get("exit_code") == 2 or error.get("refused")
    step, message = error.get("step") or failure["step"], error.get("message") or failure["message"]
    unbegun = bool(steps) and all(each == NOT_REACHED for each in steps.values())
    at = f" at {step}" if step else " before its first step began" if unbegun else ""
    return "refused" if refused else "failed", f"{run} {state.lower()}{at}: {message}"


def parse_moment(moment: str | None, otherwise: float) -> float:
    """Return a moment in seconds since 1970; Kubeflow puts the year 1 or 1970 for what has not happened."""
    parsed = datetime.fromisoformat(moment) if moment else None
    return parsed.timestamp() if parsed and parsed.year > 1970 else otherwise


def _nodes(run: Run) -> list[Node]:
    nodes = (run.get("run_details") or {}).get("task_details") or []
    return [node for node in nodes if node.get("display_name")]


def _seconds(node: Node, now: float) -> float:
    return parse_moment(node.get("end_time"), now) - parse_moment(node.get("start_time"), now)


def _message(thing: Mapping[str, Any]) -> str:
    events = [thing, *reversed(thing.get("state_history") or [])]
    return next((str(event["error"]["message"]) for event in events if (event.get("error") or {}).get("message")), "")
