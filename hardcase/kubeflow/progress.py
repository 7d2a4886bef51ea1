"""Read how a Kubeflow run is doing: from Kubeflow's details, the records of its steps, and the record of the run.

Kubeflow's details are the nodes of Argo's workflow by display name: of a step `sft` there are `sft`, `sft(0)`,
`sft-driver`, `executor` and `executor(0)`, besides groups and the workflow itself, so what is a step is read from the
pipeline. They freeze when Argo begins to compress a large workflow, and hold no reason of a failure. The steps write
both into the store (`hardcase.registry.runs`), and `conclude` at last the record of the run, which MLflow shows too.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import kfp_server_api as api

from hardcase.errors import HardcaseError
from hardcase.kubeflow.sending import ENDED
from hardcase.registry.runs import KILLED, StepRecord, read_run
from hardcase.registry.tracking import RESULT_TAG, RUN_TAG
from hardcase.report.summary import EXPERIMENT
from hardcase.store.store import Store

AT_WORK: Final = frozenset({"PENDING", "RUNNING"})
DRIVER: Final = "-driver"
NOT_REACHED: Final = "not reached"
UNKNOWN: Final = "unknown"
Node: TypeAlias = api.V2beta1PipelineTaskDetail


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        name: of the step.
        state: `pending` until its own process works, `running`, `retrying`, `succeeded`, `cached`, `failed`, `refused`
            (its input or configuration), `cancelled`, `not reached`, or `unknown`, where nobody can say.
        seconds: of its work, until now.
        message: why it failed, in its own words; empty if it left none.
    """

    name: str
    state: str
    seconds: float = 0
    message: str = ""


def is_frozen(run: api.V2beta1Run) -> bool:
    """Return whether a run ended, and Kubeflow's details have not noticed."""
    return run.state in ENDED and any(node.state in AT_WORK for node in _nodes(run))


def list_progress(
    run: api.V2beta1Run,
    names: Mapping[str, bool],
    records: Mapping[str, StepRecord],
    now: float,
    cancelled: bool = False,
) -> list[Step]:
    """Return the steps of a run in order: those that began, and once it has ended all of them.

    Args:
        run: as Kubeflow shows it.
        names: of its steps in order, and whether one runs however the others end.
        records: of its steps; none if they are not known.
        now: seconds since 1970.
        cancelled: whether somebody terminated it.
    """
    # A group that is tried again makes its nodes anew: the last one to start counts.
    nodes = {node.display_name: node for node in sorted(_nodes(run), key=lambda node: _moment(node.start_time, now))}
    ahead = [name for name, closing in names.items() if not closing]
    reached = max((place for place, name in enumerate(ahead) if name in records), default=0)
    steps = []
    for name in names:
        node = nodes.get(name)
        if (node is None or node.state is None) and (driver := nodes.get(name + DRIVER)) and driver.state == "FAILED":
            node = driver
        if record := records.get(name):
            steps.append(_recorded(record, node, run, now, cancelled))
            continue
        passed = run.state == "SUCCEEDED" or name in ahead[:reached]
        state = _unrecorded(node, run, passed, bool(records) and not names[name])
        state = "cancelled" if state == "failed" and cancelled else state
        timed = node is not None and state in ("pending", "running", "succeeded", "failed", "cancelled")
        steps.append(Step(name, state, _seconds(node, now) if timed else 0))
    return [step for step in steps if run.state in ENDED or step.state != NOT_REACHED]


def _recorded(record: StepRecord, node: Node | None, run: api.V2beta1Run, now: float, cancelled: bool) -> Step:
    started = datetime.fromisoformat(record.started).timestamp()
    ended = datetime.fromisoformat(record.ended).timestamp() if record.ended else now
    state, message, over = str(record.state), record.message, run.state in ENDED
    broken = node is not None and node.state == "FAILED"
    if state == "running" and (over or broken):
        state, message = ("cancelled", "") if cancelled else ("failed", KILLED)
    elif state == "failed" and not over and not broken:
        state = "retrying"
    return Step(record.step, state, max(0.0, ended - started), message)


def _unrecorded(node: Node | None, run: api.V2beta1Run, passed: bool, recorded: bool) -> str:
    """Return the state of a step without a record: served from the cache, not yet at work, or what Kubeflow says.

    Args:
        node: of the step.
        run: to which it belongs.
        passed: whether the run went on behind it.
        recorded: whether it would have left one: other steps did, and it may come from the cache.
    """
    state, over = node.state if node else None, run.state in ENDED
    if state == "SUCCEEDED" or (passed and (recorded or node is None or state in AT_WORK)):
        return "cached" if recorded else "succeeded"
    if state in AT_WORK:
        return (NOT_REACHED if recorded else UNKNOWN) if over else ("pending" if recorded else "running")
    if state is None:
        return UNKNOWN if node is None and is_frozen(run) and not recorded else NOT_REACHED
    return {"CANCELED": "cancelled", "SKIPPED": NOT_REACHED}.get(state, str(state).lower())


def find_failure(run: api.V2beta1Run, steps: Sequence[Step]) -> tuple[str, str, bool]:
    """Return the step at which a run failed, its own message, and whether it refused its input; empty if not known.

    Args:
        run: as Kubeflow shows it.
        steps: of the run.
    """
    for state in ("refused", "failed"):
        if found := [step for step in steps if step.state == state and step.message]:
            return found[0].name, found[0].message, state == "refused"
    failed = [node for node in _nodes(run) if node.state == "FAILED"]
    failed.sort(key=lambda node: (_moment(node.end_time, float("inf")), _moment(node.start_time, float("inf"))))
    names = {name: step.name for step in steps for name in (step.name, step.name + DRIVER)}
    own = [names[node.display_name] for node in failed if node.display_name in names]
    message = next(filter(None, map(_message, [*failed, run])), "")
    return next(iter(own), ""), message, False


def read_outcome(run_id: str, store: Store | None, mlflow: str) -> dict[str, Any] | None:
    """Return the record of a run that has ended, from the store or else from MLflow; None if neither has it.

    Args:
        run_id: Kubeflow's id of the run.
        store: in which the run is recorded.
        mlflow: URL of MLflow; not asked if empty.

    Raises:
        HardcaseError: the store or MLflow cannot be read.
    """
    outcome = read_run(store, run_id) if store else None
    if outcome is None and mlflow:
        outcome = _tagged(run_id, mlflow)
    return None if outcome is None else {"error": None, "gate": None, "model": None, **outcome}


def _tagged(run_id: str, mlflow: str) -> dict[str, Any] | None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own default is many minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(mlflow)
    try:
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        return dict(json.loads(found[0].data.tags[RESULT_TAG])) if found else None
    except (MlflowException, KeyError, ValueError) as error:
        raise HardcaseError(f"MLflow at {mlflow} does not answer: {error}; mend --mlflow, or say --store") from error


def _nodes(run: api.V2beta1Run) -> list[Node]:
    return [node for node in (run.run_details and run.run_details.task_details) or [] if node.display_name]


def _moment(time: Any, otherwise: float) -> float:
    # Kubeflow says the year 1 or 1970 of what has not happened.
    return float(time.timestamp()) if time is not None and time.year > 1970 else otherwise


def _seconds(node: Node, now: float) -> float:
    return _moment(node.end_time, now) - _moment(node.start_time, now)


def _message(thing: Any) -> str:
    places = [thing, *reversed(thing.state_history or [])]
    return next((str(place.error.message) for place in places if place.error and place.error.message), "")
