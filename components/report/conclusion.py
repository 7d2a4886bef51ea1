"""How a run on a cluster ended, told by its exit handler: what failed and why, the page of what there is, a message."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.notes import read_notes
from components.report.step import ARTIFACTS
from components.report.step import run as write_page
from hardcase.audit.retention import keep_run
from hardcase.data.store import Store

SILENT = (
    "it ended without a word: its pod was killed (out of memory, or lost with its node), or never started; "
    "Kubeflow may tell"
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conclusion:
    """How a run ended.

    Attributes:
        run: its id.
        state: `SUCCEEDED`, `FAILED` or `CANCELLED`.
        facts: of the run as a whole, label to value.
        step: that failed, if it is known.
        message: what it failed of.
        log: its last lines.
        registered: what register said, if it came so far.
        scores: of the evaluation, if it came so far.
        link: to the run, or empty.
    """

    run: str
    state: str
    facts: Mapping[str, Any]
    step: str
    message: str
    log: Sequence[str]
    registered: Mapping[str, Any]
    scores: Mapping[str, Any]
    link: str

    @property
    def headline(self) -> str:
        """In one line."""
        if self.state == "CANCELLED":
            return f"Run {self.run} was cancelled"
        if self.state != "SUCCEEDED":
            return f"Run {self.run} failed at {self.step or 'a step that left no word'}: {_line(self.message)}"
        if not self.registered:
            return f"Run {self.run} succeeded"
        name = f"{self.registered['name']}:{self.registered['version']}"
        if self.registered["verdict"] == "promoted":
            return f"Run {self.run} succeeded: {name} was promoted and is the champion"
        return f"Run {self.run} succeeded: {name} was held by the gate: {'; '.join(self.registered['reasons'])}"

    @property
    def markdown(self) -> str:
        """For the run's page in Kubeflow."""
        lines = [f"## {self.headline}", ""]
        lines += [f"- {label}: `{value}`" for label, value in self.facts.items() if value]
        if self.scores:
            parts = ("chance", "sft", "grpo")
            shown = {part: self.scores[part] for part in parts if self.scores.get(part)}
            lines += ["", "| | overall | exact match |", "|---|---|---|"]
            lines += [f"| {part} | {each['overall']:.1f} | {each['exact_match']:.3f} |" for part, each in shown.items()]
        if self.log:
            lines += ["", f"Last lines of `{self.step}`:", "", "```", *self.log, "```"]
        return "\n".join(lines) + "\n"


def conclude(
    store: Store, run: str, state: str, told: str, facts: Mapping[str, Any], link: str, html: Path, summary: Path
) -> Conclusion:
    """Write the report of what there is, and say how the run ended.

    Args:
        store: where the steps left their notes; the run is recorded there.
        run: its id.
        state: `SUCCEEDED`, `FAILED` or `CANCELLED`.
        told: what the pipeline's engine says of it.
        facts: what else to say of the run, label to value.
        link: to the run.
        html: the page.
        summary: the same in brief, Markdown.
    """
    notes = read_notes(store, run)
    failed = next((note for note in notes if note.exit_code), None) if state == "FAILED" else None
    files = {name: digest for note in notes for name, digest in note.files.items()}
    with tempfile.TemporaryDirectory() as folder:
        there = _fetched(store, files, Path(folder))
        ended = Conclusion(
            run=run,
            state=state,
            facts=facts,
            step=failed.step if failed else "",
            message=failed.message if failed else f"{SILENT}: {told}" if told else SILENT,
            log=failed.log if failed else [],
            registered=_json(there.get("register")),
            scores=_json(there.get("scores")),
            link=link,
        )
        error = None if state == "SUCCEEDED" else ended.headline
        told_of = {**facts, "run_id": run, "error": error}
        try:
            write_page(there, told_of, store.uri, html)
        except Exception:  # whatever a failed run left behind: people are told all the same
            logger.exception("the report could not be written of all that there is")
            write_page({}, told_of, store.uri, html)
    summary.write_text(ended.markdown, encoding="utf-8")
    record = {"run_id": run, "snapshot": files.get("ingest.snapshot"), "status": state.lower(), **facts}
    keep_run(store, run, {**record, "error": None if error is None else {"step": ended.step, "message": ended.message}})
    return ended


def _fetched(store: Store, files: Mapping[str, str], folder: Path) -> dict[str, Path | None]:
    there: dict[str, Path | None] = {}
    for name, (step, output) in ARTIFACTS.items():
        if digest := files.get(f"{step}.{output}"):
            path = folder / name
            path.write_bytes(store.get_object(digest))
            there[name] = path
    return there


def _json(path: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return found


def _line(text: str) -> str:
    return " ".join(text.split())
