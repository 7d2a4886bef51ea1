"""How a run on a cluster ended: decided by its exit handler from the records of its steps, reported, and recorded.

Kubeflow's word alone decides nothing: the state that the exit handler gets is `RUNNING` both of a run that was
terminated and of one whose steps all came from the cache, and its error is always empty
(`tests/recordings/kubeflow/final-status.json`). So the last step is never cached, and its record is the success.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hardcase.provenance.attestations import Link, follow
from hardcase.provenance.signing import Keyring
from hardcase.registry.runs import KILLED, StepRecord, read_records, write_run
from hardcase.report.page import run as write_page
from hardcase.report.summary import NOT_REACHED, StepOutcome, fetch_artifacts, summarise
from hardcase.store.store import Store

UNSTARTED: Final = "its process never began: its pod was not scheduled, or failed before it"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conclusion:
    """How a run ended.

    Attributes:
        summary: record of the run.
        log: last lines of the step that failed.
        link: to the run in Kubeflow's UI, or empty.
        logs: command that prints the logs of its pods.
    """

    summary: Mapping[str, Any]
    log: Sequence[str] = ()
    link: str = ""
    logs: str = ""

    @property
    def run(self) -> str:
        """Id of the run."""
        return str(self.summary["run_id"])

    @property
    def state(self) -> str:
        """`SUCCEEDED`, `FAILED` or `CANCELLED`."""
        status = self.summary["status"]
        return {"failed": "FAILED", "cancelled": "CANCELLED"}.get(status, "SUCCEEDED")

    @property
    def step(self) -> str:
        """Name of the step that failed, or at which the run was stopped."""
        return str((self.summary["error"] or {}).get("step") or "")

    @property
    def message(self) -> str:
        """Why it failed."""
        return str((self.summary["error"] or {}).get("message") or "")

    @property
    def report(self) -> str:
        """Command that fetches the report on any machine that reaches the store."""
        return f"hardcase report {self.run} --store {self.summary['store']}"

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        model, gate = self.summary["model"], self.summary["gate"]
        if self.state == "CANCELLED":
            return f"Run {self.run} was cancelled" + (f" at {self.step}" if self.step else "")
        if self.state == "FAILED":
            return f"Run {self.run} failed at {self.step}: {' '.join(self.message.split())}"
        if not model:
            return f"Run {self.run} succeeded"
        name = f"{model['name']}:{model['version']}"
        if gate["verdict"] == "promoted":
            return f"Run {self.run} succeeded: {name} was promoted and is the champion"
        return f"Run {self.run} succeeded: {name} was rejected by the gate: {'; '.join(gate['reasons'])}"

    @property
    def markdown(self) -> str:
        """The outcome for the run's page in Kubeflow."""
        lines = [f"## {self.headline}", ""]
        lines += [f"- {name}: `{self.summary[name]}`" for name in ("profile", "source", "seed") if self.summary[name]]
        if scores := self.summary["scores"]:
            lines += ["", "| | overall | exact match |", "|---|---|---|"]
            lines += [
                f"| {part} | {each['overall']:.1f} | {each['exact_match']:.3f} |"
                for part, each in scores.items()
                if each
            ]
        lines += ["", "| step | | seconds |", "|---|---|---|"]
        lines += [
            f"| {step} | {'cached' if each['cached'] else each['status']} | {each['seconds']:.0f} |"
            for step, each in self.summary["steps"].items()
        ]
        if self.log:
            lines += ["", f"Last lines of `{self.step}`:", "", "```", *self.log, "```"]
        if self.logs and self.state == "FAILED":
            lines += ["", f"Logs of the pods: `{self.logs}`"]
        lines += ["", f"The report, from any machine: `{self.report}`"]
        return "\n".join(lines) + "\n"


def conclude(
    store: Store,
    keys: Keyring,
    run: str,
    state: str,
    steps: Sequence[str],
    facts: Mapping[str, Any],
    html: Path,
    link: str = "",
    namespace: str = "",
) -> Conclusion:
    """Decide how a run ended, write its page, and record it.

    Args:
        store: where the steps left their records; the run is recorded there.
        keys: who is trusted.
        run: its id.
        state: what Kubeflow says of it: `COMPLETE`, `FAILED` or `RUNNING`.
        steps: of the pipeline, in order; the last one is never cached.
        facts: what was asked for: `profile`, `source`, `seed`.
        html: the page.
        link: to the run in Kubeflow's UI.
        namespace: of the run's pods.
    """
    records = read_records(store, run)
    links = _links(store, keys, records)
    outcomes = {step: _outcome(step, records, {link.step for link in links}) for step in steps}
    cancelled, error = _ended(records, outcomes, state)
    with tempfile.TemporaryDirectory() as folder:
        left = {name: digest for record in records.values() for name, digest in record.left.items()}
        artifacts = fetch_artifacts(store, links, left, Path(folder))
        began = next(iter(records.values())).started if records else ""
        times = began, datetime.now(UTC).isoformat(timespec="milliseconds")
        last = records[steps[-1]].attestation if steps[-1] in records else ""
        summary = summarise(run, facts, store.uri, outcomes, artifacts, error, None, times, last or None, cancelled)
        ended = Conclusion(summary)
        told_of = {**facts, "run": run, "cancelled": cancelled, "error": ended.headline if error else None}
        try:
            write_page(artifacts, told_of, store.uri, html)
        except Exception:  # whatever a failed run left behind: people are notified all the same
            logger.exception("the report could not be written of all that there is")
            write_page({}, told_of, store.uri, html)
        summary["report"] = store.put_object(html.read_bytes())
    write_run(store, run, summary)
    failed = records.get(str((error or {}).get("step")))
    logs = f"kubectl -n {namespace} logs -l pipeline/runid={run} --all-containers --prefix" if namespace else ""
    return Conclusion(summary, failed.log if failed else (), link, logs)


def _links(store: Store, keys: Keyring, records: Mapping[str, StepRecord]) -> list[Link]:
    """Of all steps that were done, in this run or before, as far as this run rests on them."""
    known = {record.attestation for record in records.values()}
    known |= {digest for record in records.values() for digest in record.materials}
    return list(follow(store, keys, sorted(known - {""})).values())


def _outcome(step: str, records: Mapping[str, StepRecord], done: set[str]) -> StepOutcome:
    record = records.get(step)
    if record is None:
        return StepOutcome("succeeded", cached=True) if step in done else StepOutcome()
    ended = datetime.fromisoformat(record.ended) if record.ended else datetime.now(UTC)
    return StepOutcome(record.state, round((ended - datetime.fromisoformat(record.started)).total_seconds(), 2))


def _ended(
    records: Mapping[str, StepRecord], outcomes: dict[str, StepOutcome], state: str
) -> tuple[bool, dict[str, Any] | None]:
    """Decide whether the run was cancelled, and what stopped it."""
    if outcomes[list(outcomes)[-1]].status == "succeeded":
        return False, None
    if broken := next((record for record in records.values() if record.state in ("failed", "refused")), None):
        return False, {"step": broken.step, "message": broken.message, "refused": broken.state == "refused"}
    at = next((step for step, outcome in outcomes.items() if outcome.status == "running"), "")
    first = at or next((step for step, outcome in outcomes.items() if outcome.status == NOT_REACHED), "")
    if state == "RUNNING":
        if at:
            outcomes[at].status = "cancelled"
        return True, {"step": at, "message": "cancelled", "refused": False}
    if first:
        outcomes[first].status = "failed"
    return False, {"step": first, "message": KILLED if at else UNSTARTED, "refused": False}
