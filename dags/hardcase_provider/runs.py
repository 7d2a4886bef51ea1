"""Read a run of Kubeflow: its steps and their states, what it waits for, where it failed, and whether it was stopped.

Kubeflow's `task_details` are the nodes of Argo's workflow, by display name: a step `sft` also as `sft-driver`,
`sft(0)`, `executor` and `executor(0)`, besides groups and the workflow itself. What is a step is therefore taken from
the pipeline's own specification. Child tasks name nodes, not pods, so no pod can be named here.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any, Final

from hardcase_provider.rest import Address

UNFINISHED: Final = frozenset({"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED"})
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# A pod usually starts within seconds. After this long the log says that it waits.
LONG_PENDING: Final = timedelta(minutes=2)
DRIVER: Final = "-driver"


def list_steps(version: Mapping[str, Any]) -> list[str]:
    """Return the steps of a pipeline version in the order in which they run, those of nested pipelines included."""
    spec = version.get("pipeline_spec") or {}
    spec = spec.get("pipeline_spec") or spec
    components = spec.get("components") or {}

    def walk(component: Mapping[str, Any]) -> Iterator[str]:
        tasks = (component.get("dag") or {}).get("tasks") or {}
        graph = {name: task.get("dependentTasks") or () for name, task in tasks.items()}
        for name in TopologicalSorter(graph).static_order():
            inner = components.get(tasks[name]["componentRef"]["name"]) or {}
            if "dag" in inner:
                yield from walk(inner)
            else:
                yield name

    return list(walk(spec.get("root") or {}))


def summarise_run(run: Mapping[str, Any], steps: Sequence[str], address: Address) -> dict[str, Any]:
    """Return a run in brief, small enough for XCom."""
    return {
        **{name: run.get(name) for name in ("run_id", "display_name", "state", "created_at", "finished_at")},
        "steps": step_states(run, steps),
        "failure": find_failure(run, steps, address) if run.get("state") == "FAILED" else None,
        "cancelled_at": cancelled_at(run),
        "link": address.run_link(str(run.get("run_id"))),
    }


def step_states(run: Mapping[str, Any], steps: Sequence[str]) -> dict[str, str]:
    """Return the state of each step that has begun.

    When a workflow is too large, Argo compresses its nodes and Kubeflow's details stop changing. So a run that has
    ended has no state for a step that seems to be running.
    """
    states: dict[str, str] = {}
    for node in sorted(_nodes(run), key=lambda node: str(node.get("start_time") or "")):
        name, state = str(node.get("display_name")), node.get("state")
        if name in steps and state and not (run.get("state") in ENDED and state in UNFINISHED):
            states[name] = state  # the last to start wins: a group that is tried again makes its nodes anew
    return {step: states[step] for step in steps if step in states}


def find_failure(run: Mapping[str, Any], steps: Sequence[str], address: Address) -> dict[str, Any]:
    """Return the step that failed first, and its own or Kubeflow's message, else the command that shows the logs.

    Up to KFP 2.17 nodes carry no message (kubeflow/pipelines #14007).
    """
    failed = [node for node in _nodes(run) if node.get("state") == "FAILED"]
    failed.sort(key=lambda node: (str(node.get("end_time") or "9"), str(node.get("start_time") or "")))
    own = [(step, node) for node in failed if (step := _step_of(node, steps))]
    message = next(filter(None, map(_message, [*(node for _, node in own), *failed, run])), "")
    logs = f"its log: kubectl -n {_namespace(address)} logs -l pipeline/runid={run.get('run_id')}"
    step, node = own[0] if own else ("", {})
    return {"step": step, "message": message or logs, **({"refused": True} if node.get("refused") else {})}


def describe_progress(run: Mapping[str, Any], steps: Sequence[str], address: Address, now: datetime) -> str:
    """Return the run's state, the steps at work, and since when a pod has been waiting for a node."""
    at_work = dict.fromkeys(step for node in _nodes(run, "RUNNING", "PENDING") if (step := _step_of(node, steps)))
    words = f"{run.get('state')}, at work: {', '.join(step for step in steps if step in at_work) or 'no step yet'}"
    # Argo's node of an unschedulable pod is Pending (argo-workflows v4.0.5 workflow/controller/operator.go:1409); the
    # step's own node is Running meanwhile.
    since = min((str(node["start_time"]) for node in _nodes(run, "PENDING") if node.get("start_time")), default="")
    if since and now - datetime.fromisoformat(since) >= LONG_PENDING:
        words += f"; a pod has been pending since {since}, which `kubectl -n {_namespace(address)} describe pods "
        words += f"-l pipeline/runid={run.get('run_id')}` explains"
    return words


def cancelled_at(run: Mapping[str, Any]) -> str:
    """Return when somebody terminated the run, if that is how it ends; else nothing.

    KFP 2.17 calls such a run `CANCELING` first and `FAILED` at its end. A run that is tried again after that has a
    later `RUNNING` in its history.
    """
    history = [event for event in run.get("state_history") or [] if event.get("state") not in ENDED]
    last = history[-1] if history else {}
    if run.get("state") == "SUCCEEDED" or "CANCEL" not in f"{run.get('state')} {last.get('state')}":
        return ""
    return str(last.get("update_time") or run.get("finished_at") or datetime.now(UTC).isoformat())


def _nodes(run: Mapping[str, Any], *states: str) -> list[Mapping[str, Any]]:
    nodes = (run.get("run_details") or {}).get("task_details") or []
    return [node for node in nodes if not states or node.get("state") in states]


def _step_of(node: Mapping[str, Any], steps: Sequence[str]) -> str:
    """Return the step to which a node or its driver belongs."""
    name = str(node.get("display_name") or "")
    return next((each for each in (name, name.removesuffix(DRIVER)) if each in steps), "")


def _message(thing: Mapping[str, Any]) -> str:
    places = [thing, *reversed(thing.get("state_history") or [])]
    return next((str(place["error"]["message"]) for place in places if (place.get("error") or {}).get("message")), "")


def _namespace(address: Address) -> str:
    """Return the namespace of the pods; an installation for one user runs them in its own."""
    return address.namespace or "kubeflow"
