"""`summary.json`: what a run came to, in the shape of `design.md`, also of a run that failed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.report.step import ARTIFACTS
from hardcase.data.digest import path_digest
from pipelines.recording import Record


def artifact_paths(records: Mapping[str, Record]) -> dict[str, Path | None]:
    """The report's artifacts, None for one that was not made."""
    found = {name: records[step].outputs.get(output) for name, (step, output) in ARTIFACTS.items()}
    return {name: path if path is not None and path.exists() else None for name, path in found.items()}


def summarise(
    run_id: str,
    profile: str,
    store: str,
    records: Mapping[str, Record],
    report: Path | None,
    error: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Put together what the steps left.

    Args:
        run_id: name of the run's folder.
        profile: name of the profile.
        store: URI of the object store.
        records: what became of each step.
        report: the page, if there is one.
        error: `message`, `step` and `exit_code` of what stopped the run.
    """
    paths = artifact_paths(records)
    snapshot = paths["snapshot"]
    scores, drift, registered = (_read(paths[name]) for name in ("scores", "drift", "register"))
    status = "failed" if error else "running"
    if registered and not error:
        status = "succeeded" if registered["verdict"] == "promoted" else "held"
    return {
        "run_id": run_id,
        "profile": profile,
        "store": store,
        "status": status,
        "error": dict(error) if error else None,
        "snapshot": path_digest(snapshot) if snapshot else None,
        "steps": {
            step: {"status": record.status, "seconds": record.seconds, "cached": record.cached}
            for step, record in records.items()
        },
        "scores": {key: scores.get(key) for key in ("chance", "sft", "grpo")} if scores else None,
        "gain": scores.get("gain") if scores else None,
        "drift": {key: drift[key] for key in ("drifted", "tests")} if drift else None,
        "gate": {key: registered[key] for key in ("verdict", "reasons")} if registered else None,
        "model": {key: registered[key] for key in ("name", "version", "alias", "digest")} if registered else None,
        "report": str(report) if report else None,
    }


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
