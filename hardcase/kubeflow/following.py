"""Follow a Kubeflow run until it ends, show its steps, and say how it ended."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import kfp_server_api as api
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hardcase.errors import GateRejected, HardcaseError, InputError
from hardcase.kubeflow.client import Refused, Unreachable
from hardcase.kubeflow.progress import NOT_REACHED, UNKNOWN, Step, find_failure, is_frozen, list_progress, read_outcome
from hardcase.kubeflow.sending import ENDED, Kubeflow, is_cancelled
from hardcase.registry.runs import StepRecord, read_records
from hardcase.store.store import Store

MARKS: Final = {
    "succeeded": "[green]✓",
    "cached": "[green]✓",
    "failed": "[red]✗",
    "refused": "[red]✗",
    "cancelled": "[red]✗",
    "running": "[cyan]…",
    "retrying": "[yellow]…",
}
DONE: Final = frozenset({"succeeded", "failed", "refused", "cancelled"})


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


@dataclass
class Account:
    """What is known of a run, from Kubeflow, the store and MLflow.

    Attributes:
        kubeflow: where the run is.
        store: where its steps leave records; None if it is not known.
        mlflow: URL of MLflow; empty if it is not known.
        namespace: of its pods.
        notes: what cannot be known, and how it could.
    """

    kubeflow: Kubeflow
    store: Store | None = None
    mlflow: str = ""
    namespace: str = ""
    notes: list[str] = field(default_factory=list)
    _names: Mapping[str, bool] = field(default_factory=dict)
    _records: Mapping[str, StepRecord] = field(default_factory=dict)
    _cancelled: bool = False

    def look(self, run: api.V2beta1Run) -> list[Step]:
        """Return the steps of a run as far as they are known."""
        # Its end may come before Kubeflow writes CANCELING into its history (kubeflow/pipelines 2.17.0,
        # backend/src/apiserver/storage/run_store.go:824).
        self._cancelled = run.state != "SUCCEEDED" and (self._cancelled or is_cancelled(run))
        with suppress(Unreachable):  # asked again at the next look
            self._names = self._names or self.kubeflow.steps(run)
        if self.store:
            try:
                self._records = read_records(self.store, run.run_id)
            except HardcaseError as error:
                self._note(f"the steps' records cannot be read: {error}")
        names = self._names or dict.fromkeys(self._records, False)
        return list_progress(run, names, self._records, time.time(), self._cancelled)

    def conclude(self, run: api.V2beta1Run) -> dict[str, Any]:
        """Return what became of a run that has ended: `state`, `steps`, `gate`, `model`, `notes` and `error`."""
        steps, outcome = self.look(run), self._outcome(run)
        facts: dict[str, Any] = {"state": run.state, "steps": {step.name: step.state for step in steps}}
        facts |= {name: outcome[name] for name in ("gate", "model") if outcome and outcome[name]}
        if not self.store and (is_frozen(run) or any(step.state == UNKNOWN for step in steps)):
            self._note("Kubeflow's details of this run stopped changing; --store URI reads the steps' own records")
        try:
            self._raise(run, steps, outcome or {})
        except HardcaseError as error:
            facts["error"] = {"message": str(error), "exit_code": error.exit_code}
        return {**facts, "notes": self.notes}

    def _outcome(self, run: api.V2beta1Run) -> dict[str, Any] | None:
        try:
            outcome = read_outcome(run.run_id, self.store, self.mlflow)
        except HardcaseError as error:
            self._note(f"the record of the run cannot be read: {error}")
            return None
        if outcome is None and run.state == "SUCCEEDED":
            asked = [place for place in (self.store.uri if self.store else "", self.mlflow) if place]
            why = f"no record of this run in {' and '.join(asked)}; name the cluster's" if asked else "name"
            self._note(f"what the gate said is not known: {why} --store URI or --mlflow URL")
        return outcome

    def _raise(self, run: api.V2beta1Run, steps: list[Step], outcome: Mapping[str, Any]) -> None:
        """Raise what became of a run, unless it succeeded and the gate let its model pass."""
        if run.state == "SUCCEEDED":
            if (gate := outcome.get("gate")) and gate["verdict"] != "promoted":
                raise GateRejected(f"rejected by the gate: {'; '.join(gate['reasons'])}")
            return
        if self._cancelled or outcome.get("status") == "cancelled":
            at = next((f" at {step.name}" for step in steps if step.state == "cancelled"), "")
            raise HardcaseError(f"run {run.run_id} was cancelled{at}")
        name, message, refused = find_failure(run, steps)
        if error := outcome.get("error"):
            refused = refused or bool(error.get("refused"))
            name, message = error.get("step") or name, error["message"]
        unbegun = bool(steps) and all(step.state == NOT_REACHED for step in steps)
        at = f" at {name}" if name else " before its first step began" if unbegun else ""
        # A label, for what Kubeflow calls pod_name is the id of a node, not of a pod.
        logs = (
            f"kubectl -n {self.namespace or 'kubeflow'} logs -l pipeline/runid={run.run_id} --all-containers --prefix"
        )
        kind = InputError if refused else HardcaseError
        raise kind(f"run {run.run_id} {run.state.lower()}{at}: {message or f'its log: {logs}'}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class Board:
    """Shows the steps on standard error: a table that moves on a terminal, a line for each change elsewhere.

    Args:
        look: gives the steps of a run.
    """

    def __init__(self, look: Callable[[api.V2beta1Run], list[Step]]) -> None:
        self._look = look
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
        steps = self._look(run)
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for step in steps or [Step("run", str(run.state or "PENDING").lower())]:
                table.add_row(MARKS.get(step.state, " "), step.name, step.state, f"{step.seconds:.0f} s")
            self._live.update(table, refresh=True)
            return
        for step in steps:
            if self._said.get(step.name) != step.state:
                self._said[step.name] = step.state
                spent = f", {step.seconds:.0f} s" if step.state in DONE else ""
                self._console.print(f"{step.name}: {step.state}{spent}")

    def missed(self, problem: str) -> None:
        """Say it above the table."""
        self._console.print(problem, markup=False)
