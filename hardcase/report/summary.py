"""The record of a run, `summary.json`: what it came to, wherever it ran and however it ended (`design.md`)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hardcase.provenance.attestations import Link
from hardcase.provenance.products import fetch_product
from hardcase.provenance.statement import FOLDER
from hardcase.registry.tracking import show_run
from hardcase.store.digest import path_digest
from hardcase.store.store import Store

FORMAT: Final = 1
NOT_REACHED: Final = "not reached"
EXPERIMENT: Final = "hardcase-runs"
LONGEST_TEXT: Final = 500
MOST_REASONS: Final = 8


@dataclass
class StepOutcome:
    """What became of a step.

    Attributes:
        status: `succeeded`, `failed`, `refused`, `running`, `cancelled` or `not reached`.
        seconds: of its work.
        cached: whether it was served from the cache.
    """

    status: str = NOT_REACHED
    seconds: float = 0.0
    cached: bool = False


def fetch_artifacts(store: Store, links: Iterable[Link], left: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Fetch what steps made, all but models, for a report.

    Args:
        store: the store of the run.
        links: of the steps, in order.
        left: sha256 of what a refusal left, by name.
        folder: for the files.

    Returns:
        The files by name.

    Raises:
        HardcaseError: one of them is missing or altered.
    """
    made = {
        name: (digest, link.kind(name))
        for link in links
        for name, digest in link.products.items()
        if link.kind(name) != FOLDER
    }
    made |= {name: (digest, "") for name, digest in left.items()}
    return {name: fetch_product(store, digest, kind, folder / name) for name, (digest, kind) in made.items()}


def summarise(
    run_id: str,
    facts: Mapping[str, Any],
    store: str,
    steps: Mapping[str, StepOutcome],
    artifacts: Mapping[str, Path],
    error: Mapping[str, Any] | None,
    report: str | None,
    times: Sequence[str] = ("", ""),
    attestation: str | None = None,
    cancelled: bool = False,
) -> dict[str, Any]:
    """Put together what the steps left.

    Args:
        run_id: of the run.
        facts: what was asked for: `profile`, `source`, `seed`.
        store: URI of the object store.
        steps: what became of each, in order.
        artifacts: what they made, by name.
        error: `message` and `step` of what stopped the run.
        report: where the page is: a path, or its sha256 in the store.
        times: when the run started and ended, ISO 8601.
        attestation: sha256 of that of the last step, if it was done; it leads to all others.
        cancelled: whether a person stopped it.
    """
    scores, drift, registered, evaluated = (
        _read(artifacts.get(name)) for name in ("scores", "drift", "registration", "evaluated")
    )
    status = "cancelled" if cancelled else "failed" if error else "evaluated" if evaluated else "running"
    if registered and not error:
        status = "succeeded" if registered["verdict"] == "promoted" else "rejected"
    return {
        "format": FORMAT,
        "run_id": run_id,
        **facts,
        "store": store,
        "status": status,
        "error": dict(error) if error else None,
        "snapshot": path_digest(artifacts["snapshot"]) if "snapshot" in artifacts else None,
        "steps": {step: vars(outcome) for step, outcome in steps.items()},
        "scores": {key: scores.get(key) for key in ("chance", "sft", "final")} if scores else None,
        "gain": scores.get("gain") if scores else None,
        "drift": {key: drift[key] for key in ("drifted", "tests")} if drift else None,
        "gate": {key: registered[key] for key in ("verdict", "reasons")} if registered else None,
        "model": {key: registered[key] for key in ("name", "version", "alias", "digest")} if registered else None,
        "attestation": attestation,
        "report": report,
        "started": times[0],
        "ended": times[1],
    }


def show_summary(summary: Mapping[str, Any], tracking_uri: str) -> None:
    """Show in MLflow how a run ended, for those who know its id and cannot read the store."""
    result = {name: summary[name] for name in ("run_id", "status", "error", "model", "gate")}
    if error := summary["error"]:
        result["error"] = {**error, "message": error["message"][:LONGEST_TEXT]}
    if gate := summary["gate"]:
        result["gate"] = {**gate, "reasons": [reason[:LONGEST_TEXT] for reason in gate["reasons"][:MOST_REASONS]]}
    final = (summary["scores"] or {}).get("final") or {}
    metrics = {name: final[name] for name in ("overall", "exact_match") if name in final}
    tags = {"status": summary["status"], "profile": str(summary["profile"])}
    show_run(tracking_uri, EXPERIMENT, summary["run_id"], summary["run_id"], result, tags, metrics)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
