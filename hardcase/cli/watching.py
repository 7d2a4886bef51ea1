"""Watch a Kubeflow run from the command line: what is known of it, and how its steps are shown."""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.live import Live
from rich.table import Table

from hardcase.cli.console import PrintableConsole
from hardcase.errors import HardcaseError
from hardcase.kubeflow.address import Unreachable
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.launching import find_steps
from hardcase.kubeflow.requests import Look, Missed
from hardcase.kubeflow.runs import (
    UNKNOWN,
    Step,
    cancelled_at,
    explain_end,
    is_frozen,
    list_progress,
    summarise_run,
)
from hardcase.registry.runs import read_records, read_run
from hardcase.registry.tracking import RESULT_TAG, RUN_TAG
from hardcase.report.summary import EXPERIMENT
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
EXIT_CODES: Final = {"rejected": 3, "refused": 2, "cancelled": 1, "failed": 1}


@dataclass
class Account:
    """What is known of a run, from Kubeflow, the store and MLflow."""

    client: Client  # of the Kubeflow where the run is
    store: Store | None = None  # where its steps leave records; None if it is not known
    mlflow: str = ""  # URL of MLflow; empty if it is not known
    notes: list[str] = field(default_factory=list)  # what cannot be known, and how it could
    _names: Mapping[str, bool] = field(default_factory=dict)
    _records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _cancelled: bool = False

    def look(self, run: Mapping[str, Any]) -> list[Step]:
        """Return the steps of a run as far as they are known."""
        # Its end may come before Kubeflow writes CANCELING into its history (kubeflow/pipelines 2.17.0,
        # backend/src/apiserver/storage/run_store.go:824).
        self._cancelled = run.get("state") != "SUCCEEDED" and (self._cancelled or bool(cancelled_at(run)))
        with suppress(Unreachable):  # asked again at the next look
            self._names = self._names or self.client.run(find_steps(run, self.client.address))
        if self.store:
            try:
                records = read_records(self.store, run["run_id"])
                self._records = {step: asdict(record) for step, record in records.items()}
            except HardcaseError as error:
                self._note(f"the steps' records cannot be read: {error}")
        names = self._names or dict.fromkeys(self._records, False)
        return list_progress(run, names, self._records, time.time(), self._cancelled)

    def conclude(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return what became of a run that has ended: `state`, `steps`, `gate`, `model`, `notes` and `error`."""
        steps, record, address = self.look(run), self._record(run) or {}, self.client.address
        summary = summarise_run(run, steps, link="", namespace=address.namespace, cancelled=self._cancelled)
        facts: dict[str, Any] = {name: summary[name] for name in ("state", "steps")}
        facts |= {name: record[name] for name in ("gate", "model") if record.get(name)}
        for warning in record.get("warnings", []):
            self._note(warning)
        if not self.store and (is_frozen(run) or any(step.state == UNKNOWN for step in steps)):
            self._note("Kubeflow's details of this run stopped changing; --store URI reads the steps' own records")
        kind, message = explain_end(summary, record)
        if message:
            facts["error"] = {"message": message, "exit_code": EXIT_CODES[kind]}
        return {**facts, "notes": self.notes}

    def _record(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            record = read_record(run["run_id"], self.store, self.mlflow)
        except HardcaseError as error:
            self._note(f"the record of the run cannot be read: {error}")
            return None
        if record is None and run.get("state") == "SUCCEEDED":
            asked = [source for source in (self.store.uri if self.store else "", self.mlflow) if source]
            why = f"no record of this run in {' and '.join(asked)}; name the cluster's" if asked else "name"
            self._note(f"what the gate said is not known: {why} --store URI or --mlflow URL")
        return record

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_record(run_id: str, store: Store | None, mlflow: str) -> dict[str, Any] | None:
    """Return the record of a run that has ended, from the store or else from MLflow; None if neither has it.

    Raises:
        HardcaseError: the store or MLflow cannot be read.
    """
    record = read_run(store, run_id) if store else None
    return record if record is not None or not mlflow else _read_tag(run_id, mlflow)


def _read_tag(run_id: str, mlflow: str) -> dict[str, Any] | None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own default is many minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(mlflow)
    try:
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is None:
            return None
        runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        return dict(json.loads(runs[0].data.tags[RESULT_TAG])) if runs else None
    except (MlflowException, KeyError, ValueError) as error:
        raise HardcaseError(f"MLflow at {mlflow} does not answer: {error}; fix --mlflow, or give --store") from error


class Board:
    """Shows the steps on standard error: a table that moves on a terminal, a line for each change elsewhere."""

    def __init__(self, look: Callable[[Mapping[str, Any]], list[Step]]) -> None:
        self._look = look
        self._console = PrintableConsole(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._states = dict[str, str]()

    def __enter__(self) -> "Board":
        """Start drawing."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._console.is_terminal:
            self._live.stop()

    def see(self, event: Look | Missed) -> None:
        """Draw a run as it is now, or print above the table why it could not be seen."""
        if isinstance(event, Missed):
            self._console.print(f"{event.error}; silent for {event.silent:.0f} s, the run goes on", markup=False)
            return
        run = event.run
        steps = self._look(run)
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for step in steps or [Step("run", str(run.get("state") or "PENDING").lower())]:
                table.add_row(MARKS.get(step.state, " "), step.name, step.state, f"{step.seconds:.0f} s")
            self._live.update(table, refresh=True)
            return
        for step in steps:
            if self._states.get(step.name) != step.state:
                self._states[step.name] = step.state
                spent = f", {step.seconds:.0f} s" if step.state in DONE else ""
                self._console.print(f"{step.name}: {step.state}{spent}")
