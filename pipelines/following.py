"""A Kubeflow run as it is followed: its steps, what failed, how it ended, and how a person sees that."""

import json
import math
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import kfp_server_api as api
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hardcase.errors import HardcaseError
from pipelines.client import Refused, Unreachable
from pipelines.sending import Kubeflow

ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# Nodes of the workflow that are no steps: what Kubeflow's compiler for Argo adds (upstream's
# backend/src/v2/compiler/argocompiler), and groups of steps. Argo numbers attempts and iterations: `executor(0)`,
# `iteration(3:3)`.
INNER: Final = re.compile(
    r"(root|executor|.*-driver|iteration|iteration-item|.*system-(container|dag)-.*"
    r"|(for-loop|condition|condition-branches|exit-handler)-\d+)(\(.*\))?"
)
MARKS: Final = {"SUCCEEDED": "[green]✓", "FAILED": "[red]✗", "CANCELED": "[red]✗", "SKIPPED": "–", "RUNNING": "[cyan]…"}


class Gone(HardcaseError):
    """There is no such run any more."""


class Unknown(Gone):
    """There never was, as far as we saw."""

    exit_code = 2


class Watcher(Protocol):
    """Is told how a run goes on."""

    def saw(self, run: api.V2beta1Run) -> None:
        """It is so now."""

    def missed(self, problem: str) -> None:
        """It could not be seen."""


@dataclass
class Step:
    """A step of a run, with all its shards and attempts.

    Attributes:
        name: of the step.
        states: how often each state is there.
        seconds: from the first start to the last end, or until now.
    """

    name: str
    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0

    @property
    def told(self) -> str:
        """Its state in words, with how many of its shards are done."""
        total, word = sum(self.states.values()), self.state.lower()
        return f"{word} {self.states.get('SUCCEEDED', 0)}/{total}" if total > 1 else word

    @property
    def state(self) -> str:
        """Of the step as a whole."""
        if len(self.states) == 1:
            return next(iter(self.states))
        if self.states.keys() <= {"SUCCEEDED", "SKIPPED"}:
            return "SUCCEEDED"
        return next((state for state in ("FAILED", "CANCELED") if state in self.states), "RUNNING")


def steps_of(run: api.V2beta1Run, now: float) -> list[Step]:
    """The steps of a run that have begun, in that order."""
    tasks: dict[str, list[api.V2beta1PipelineTaskDetail]] = {}
    begun = [task for task in _tasks(run) if not _inner(task, run)]
    for task in sorted(begun, key=lambda task: _moment(task.start_time, now)):
        tasks.setdefault(task.display_name, []).append(task)
    steps = []
    for name, each in tasks.items():
        step = Step(name)
        for task in each:
            state = task.state or "PENDING"
            step.states[state] = step.states.get(state, 0) + 1
        step.seconds = max(_moment(task.end_time, now) for task in each) - min(
            _moment(task.start_time, now) for task in each
        )
        steps.append(step)
    return steps


def _moment(time_: Any, otherwise: float) -> float:
    # Kubeflow says the year 1970 of what has not happened.
    return float(time_.timestamp()) if time_ is not None and time_.year > 1970 else otherwise


def _tasks(run: api.V2beta1Run) -> list[api.V2beta1PipelineTaskDetail]:
    return [task for task in (run.run_details and run.run_details.task_details) or [] if task.display_name]


def _inner(task: api.V2beta1PipelineTaskDetail, run: api.V2beta1Run) -> bool:
    name = task.display_name
    return bool(INNER.fullmatch(name)) or name in (run.display_name, run.run_id)


def failures(run: api.V2beta1Run) -> list[dict[str, str]]:
    """Steps of a run that failed, the first to end first, each with what Kubeflow tells of it.

    Up to KFP 2.17 the server leaves `error` of a task empty (kubeflow/pipelines #14007), so the state history and the
    run are asked too.
    """
    failed = [task for task in _tasks(run) if task.state == "FAILED"]
    failed.sort(key=lambda task: (_moment(task.end_time, math.inf), _moment(task.start_time, math.inf)))
    found = []
    for task in [task for task in failed if not _inner(task, run)] or failed:
        pods = [child.pod_name for child in task.child_tasks or [] if child.pod_name]
        pod = task.pod_name or next(iter(pods), "")
        where = f"see the log of pod {pod}" if pod else "see its log in Kubeflow"
        said = next(filter(None, map(told, [task, *failed, run])), where)
        found.append({"step": task.display_name, "message": said})
    return found


def told(thing: Any) -> str:
    """What Kubeflow tells of a run or a task."""
    places = [thing, *reversed(thing.state_history or [])]
    return next((str(place.error.message) for place in places if place.error and place.error.message), "")


def follow(kubeflow: Kubeflow, run_id: str, watcher: Watcher, poll: float = 5, patience: float = 600) -> api.V2beta1Run:
    """Look at a run until it ends.

    Args:
        kubeflow: where it is.
        run_id: of the run.
        watcher: told at each look.
        poll: seconds between looks.
        patience: seconds that Kubeflow may be silent.

    Raises:
        Unreachable: it was silent for longer.
        Gone: someone deleted the run, or there was none.
        Refused: we may not look at it.
    """
    seen, heard = False, time.monotonic()
    while True:
        try:
            run = kubeflow.run(run_id)
        except Unreachable as error:
            if not seen or (silent := time.monotonic() - heard) > patience:
                raise
            watcher.missed(f"{error}; silent for {silent:.0f} s, the run goes on")
        except Refused as error:
            if error.status != 404:
                raise
            if seen:
                raise Gone(f"run {run_id} is gone from Kubeflow: someone deleted it") from error
            raise Unknown(f"run {run_id}: Kubeflow has no such run") from error
        else:
            seen, heard = True, time.monotonic()
            watcher.saw(run)
            if run.state in ENDED:
                return run
        time.sleep(poll)


def concluded(run: api.V2beta1Run) -> None:
    """Raise what became of a run that ended, unless it succeeded."""
    if run.state == "SUCCEEDED":
        return
    if run.state == "CANCELED":
        raise HardcaseError(f"run {run.run_id} was cancelled")
    failed = [f"{each['step']}: {each['message']}" for each in failures(run)]
    where = failed or [told(run) or "Kubeflow does not say where"]
    raise HardcaseError(f"run {run.run_id} {run.state.lower()} at {'; '.join(where)}")


def judged(run: api.V2beta1Run, tracking_uri: str, model: str = "image-screener") -> dict[str, Any]:
    """What the gate said of the model that a run registered, from MLflow; Kubeflow's API tells no results.

    Returns:
        `version`, `verdict` and `reasons`; empty if no version, or more than one, was registered while the run went on.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own default is many minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        found = MlflowClient(tracking_uri).search_model_versions(f"name='{model}'")
    except MlflowException as error:
        raise Unreachable(f"run {run.run_id} succeeded, but MLflow does not say what the gate did: {error}") from error
    first, last = run.created_at.timestamp() * 1000, run.finished_at.timestamp() * 1000
    made = [version for version in found if first <= version.creation_timestamp <= last]
    if len(made) != 1:
        return {}
    tags = made[0].tags
    return {
        "version": int(made[0].version),
        "verdict": tags.get("verdict"),
        "reasons": json.loads(tags.get("reasons", "[]")),
    }


class Board:
    """Shows the steps on standard error: a table that moves on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._said = dict[str, str]()

    def __enter__(self) -> "Board":
        """Start drawing."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._console.is_terminal:
            self._live.stop()

    def saw(self, run: api.V2beta1Run) -> None:
        """Draw it."""
        steps = steps_of(run, time.time())
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for step in steps or [Step("run", {run.state or "PENDING": 1})]:
                table.add_row(MARKS.get(step.state, " "), step.name, step.told, f"{step.seconds:.0f} s")
            self._live.update(table, refresh=True)
            return
        for step in steps:
            if self._said.get(step.name) != step.told:
                self._said[step.name] = step.told
                ended = f", {step.seconds:.0f} s" if step.state in ENDED else ""
                self._console.print(f"{step.name}: {step.told}{ended}")

    def missed(self, problem: str) -> None:
        """Say it above the table."""
        self._console.print(problem, markup=False)
