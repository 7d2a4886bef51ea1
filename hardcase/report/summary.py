"""The record of a run, `summary.json`: the same document wherever the run was executed and however it ended."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hardcase.data.cases import read_cases
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.products import fetch_product
from hardcase.provenance.statement import FILE, FOLDER
from hardcase.registry.runs import RUN_FORMAT
from hardcase.registry.tracking import show_run
from hardcase.stats.learning import list_warnings, read_log
from hardcase.store.digest import path_digest
from hardcase.store.store import Store

NOT_REACHED: Final = "not reached"
EXPERIMENT: Final = "hardcase-runs"
LONGEST_TEXT: Final = 500
MOST_REASONS: Final = 8
TABLES: Final = ("evaluation", "quarantine")  # that users read
TOTALS: Final = ("overall", "exact_match")


@dataclass
class StepOutcome:
    """Outcome of a step: `succeeded`, `failed`, `running`, `cancelled` or `not reached`; seconds of work."""

    status: str = NOT_REACHED
    seconds: float = 0.0
    cached: bool = False


def fetch_artifacts(
    store: Store, links: Iterable[Attestation], left: Mapping[str, str], folder: Path
) -> dict[str, Path]:
    """Fetch what steps wrote, except models, into a folder, and return the files by name.

    `left` holds the sha256 of the files that explain a refusal, by name.
    """
    products = [(link, name, digest) for link in links for name, digest in link.products.items()]
    files = {name: digest for link, name, digest in products if link.media_type(name) != FOLDER} | dict(left)
    return {name: fetch_product(store, digest, FILE, folder / name) for name, digest in files.items()}


def summarise_run(
    run_id: str,
    asked: Mapping[str, Any],
    store: str,
    steps: Mapping[str, StepOutcome],
    artifacts: Mapping[str, Path],
    error: Mapping[str, Any] | None,
    times: Sequence[str] = ("", ""),
    attestation: str | None = None,
    cancelled: bool = False,
) -> dict[str, Any]:
    """Return the record of a run: the request, and what its steps wrote.

    `asked` holds `pipeline`, `profile`, `source`, `seed` and `settings`. `error` holds `message`, `step` and
    `exit_code`. `times` are those of start and end, ISO 8601. `attestation` is the sha256 of the last step's, if that
    step succeeded: it leads to all others. A person stopped a `cancelled` run.
    """
    scores, drift, registered, version = (
        _read(artifacts.get(name)) for name in ("scores", "drift", "registration", "version")
    )
    status = "cancelled" if cancelled else "failed" if error else "evaluated"
    if registered and not error:
        status = "succeeded" if registered["verdict"] == "promoted" else "rejected"
    model = registered or version
    mined, log = artifacts.get("mined"), artifacts.get("grpo_log")
    warnings = list_warnings(read_cases(mined) if mined else (), read_log(log) if log else (), scores)
    return {
        "format": RUN_FORMAT,
        "run_id": run_id,
        **asked,
        "store": store,
        "status": status,
        "error": dict(error) if error else None,
        "snapshot": path_digest(artifacts["snapshot"]) if "snapshot" in artifacts else None,
        "samples": scores.get("samples"),
        "steps": {step: vars(outcome) for step, outcome in steps.items()},
        "scores": {key: scores.get(key) for key in ("chance", "sft", "final")} if scores else None,
        "gain": scores.get("gain"),
        "drift": {key: drift[key] for key in ("drifted", "reference", "tests")} if drift else None,
        "gate": {key: registered[key] for key in ("verdict", "reasons")} if registered else None,
        "warnings": warnings,
        "model": {key: model[key] for key in ("name", "version", "alias", "digest")} if model else None,
        **{table: path_digest(artifacts[table]) if table in artifacts else None for table in TABLES},
        "attestation": attestation,
        "report": None,
        "started": times[0],
        "ended": times[1],
    }


def show_record(record: Mapping[str, Any], tracking_uri: str) -> None:
    """Show in MLflow how a run ended, for readers who know its id and cannot read the store."""
    names = (
        "run_id",
        "pipeline",
        "status",
        "error",
        "model",
        "gate",
        "warnings",
        "snapshot",
        "samples",
        "evaluation",
        "drift",
    )
    result = {name: record[name] for name in names}
    if error := record["error"]:
        result["error"] = {**error, "message": error["message"][:LONGEST_TEXT]}
    if gate := record["gate"]:
        result["gate"] = {**gate, "reasons": [reason[:LONGEST_TEXT] for reason in gate["reasons"][:MOST_REASONS]]}
    scores = {part: score for part, score in (record["scores"] or {}).items() if score}
    result["scores"] = {
        part: {name: score[name] for name in TOTALS}
        | {"intervals": {name: score["intervals"][name] for name in TOTALS if name in score["intervals"]}}
        for part, score in scores.items()
    }
    metrics = {name: scores["final"][name] for name in TOTALS} if "final" in scores else {}
    metrics |= {"drifted": float(record["drift"]["drifted"])} if record["drift"] else {}
    tags = {"status": record["status"], "pipeline": record["pipeline"], "profile": str(record["profile"])}
    show_run(tracking_uri, EXPERIMENT, record["run_id"], result, tags, metrics)


def _read(path: Path | None) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return content
