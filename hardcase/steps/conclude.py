"""conclude: how a run ended, decided from the records of its steps, reported, recorded, and notified.

Kubeflow's own status decides nothing: the state that the exit handler gets is `RUNNING` both of a run that was
terminated and of one whose steps all came from the cache, and its error is always empty
(`tests/recordings/kubeflow/final-status.json`). So the last step is never cached, and its record is the success.
"""

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hardcase.compiled import list_steps
from hardcase.errors import InputError
from hardcase.lifetime import temporary_folder
from hardcase.provenance.attestations import Attestation, follow
from hardcase.provenance.openlineage import emit
from hardcase.provenance.signing import Keyring
from hardcase.registry.runs import KILLED, StepRecord, read_records, write_run
from hardcase.report.conclusion import Conclusion
from hardcase.report.notify import notify
from hardcase.report.page import run as write_page
from hardcase.report.summary import NOT_REACHED, StepOutcome, fetch_artifacts, show_record, summarise_run
from hardcase.runtime.materials import keyring
from hardcase.runtime.running import namespace_of, noted, read_locations
from hardcase.store.store import Store, open_store

UNSTARTED: Final = "its process never began: its pod was not scheduled, or failed before it"
logger = logging.getLogger(__name__)


def execute(asked: Mapping[str, Any], state: str, html: Path, markdown: Path) -> None:
    """Write the report and the record of a run however it ended, show it in MLflow, and notify people of a failure.

    `asked` holds `pipeline`, `profile`, `source`, `seed` and `settings` of the run. `state` is that of the runner.
    `markdown` is the path of the summary for Kubeflow's UI.
    """
    with noted("conclude"):
        locations = read_locations()
        run, ui = os.environ["HARDCASE_RUN"], os.environ.get("HARDCASE_UI", "").rstrip("/")
        link = f"{ui}/#/runs/details/{run}" if ui else ""
        ended = conclude(open_store(locations["store"]), keyring(), run, state, asked, html, link, namespace_of())
        markdown.write_text(ended.markdown, encoding="utf-8")
        show_record(ended.record, locations["tracking_uri"])
        emit("FAIL" if ended.message else "COMPLETE", run, error=ended.message)
        if ended.state == "FAILED":
            notify(ended.notice, os.environ)


def conclude(
    store: Store,
    keys: Keyring,
    run: str,
    state: str,
    asked: Mapping[str, Any],
    html: Path,
    link: str = "",
    namespace: str = "",
) -> Conclusion:
    """Decide from the records in the store how a run ended, write its page, and record it.

    `asked` and `state` are as of `execute`. `link` leads to the run in Kubeflow's UI, `namespace` is that of its pods.
    """
    steps, records = list_steps(asked["pipeline"]), read_records(store, run)
    records.pop("conclude", None)
    links = _links(store, keys, records)
    outcomes = {step: _outcome(step, records, {link.step for link in links}) for step in steps}
    cancelled, error = _decide(records, outcomes, state)
    with temporary_folder() as folder:
        left = {name: digest for record in records.values() for name, digest in record.left.items()}
        artifacts = fetch_artifacts(store, links, left, folder)
        began = next(iter(records.values())).started if records else ""
        times = began, datetime.now(UTC).isoformat(timespec="milliseconds")
        last = records[steps[-1]].attestation if steps[-1] in records else ""
        record = summarise_run(run, asked, store.uri, outcomes, artifacts, error, times, last or None, cancelled)
        ended = Conclusion(record)
        labels = {name: asked[name] for name in ("profile", "source", "seed") if asked[name] != ""}
        labels |= {"run": run, "cancelled": cancelled, "error": ended.headline if error else None}
        try:
            write_page(artifacts, labels, store.uri, html)
        except Exception:  # whatever a failed run left behind, people are notified
            logger.exception("the report could not be written of all that there is")
            write_page({}, labels, store.uri, html)
        record["report"] = store.put_object(html.read_bytes())
    write_run(store, run, record)
    failed = records.get(str((error or {}).get("step")))
    logs = f"kubectl -n {namespace} logs -l pipeline/runid={run} --all-containers --prefix" if namespace else ""
    return Conclusion(record, failed.log if failed else (), link, logs)


def _links(store: Store, keys: Keyring, records: Mapping[str, StepRecord]) -> list[Attestation]:
    """Return the attestations of all steps that were done, in this run or before, as far as this run rests on them."""
    known = {record.attestation for record in records.values()}
    known |= {digest for record in records.values() for digest in record.materials}
    return list(follow(store, keys, sorted(known - {""})).values())


def _outcome(step: str, records: Mapping[str, StepRecord], done: set[str]) -> StepOutcome:
    record = records.get(step)
    if record is None:
        return StepOutcome("succeeded", cached=True) if step in done else StepOutcome()
    ended = datetime.fromisoformat(record.ended) if record.ended else datetime.now(UTC)
    seconds = (ended - datetime.fromisoformat(record.started)).total_seconds()
    status = "failed" if record.state == "refused" else record.state  # the error's exit code tells them apart
    return StepOutcome(status, round(seconds, 2), record.cached)


def _decide(
    records: Mapping[str, StepRecord], outcomes: dict[str, StepOutcome], state: str
) -> tuple[bool, dict[str, Any] | None]:
    """Decide whether the run was cancelled, and what stopped it."""
    if outcomes[list(outcomes)[-1]].status == "succeeded":
        return False, None
    if broken := next((record for record in records.values() if record.state in ("failed", "refused")), None):
        code = InputError.exit_code if broken.state == "refused" else 1
        return False, {"step": broken.step, "message": broken.message, "exit_code": code}
    at = next((step for step, outcome in outcomes.items() if outcome.status == "running"), "")
    first = at or next((step for step, outcome in outcomes.items() if outcome.status == NOT_REACHED), "")
    if state == "RUNNING":
        if at:
            outcomes[at].status = "cancelled"
        return True, {"step": at, "message": "cancelled", "exit_code": 1}
    if first:
        outcomes[first].status = "failed"
    return False, {"step": first, "message": KILLED if at else UNSTARTED, "exit_code": 1}
