"""register: the gate's verdict on a model, kept as a version with the alias `champion` or `challenger`.

Done again, after a kill at any point or not, it finds what is there and comes to the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.register.gate import decide
from components.register.registry import CHALLENGER, CHAMPION, Registry, as_tag
from hardcase.config import RegisterConfig
from hardcase.data.store import write_whole
from hardcase.errors import InputError


def run(
    model: Path,
    evaluation: Path,
    scores: Path,
    drift: Path,
    champion: str,
    store: str,
    tracking_uri: str,
    config: RegisterConfig,
    fingerprint: str,
    seed: int,
    result: Path,
) -> None:
    """Register the model, and make it the champion if it passes the gate.

    Args:
        model: its folder.
        evaluation: its `evaluation.parquet`.
        scores: its `scores.json`.
        drift: its `drift.json`.
        champion: version to beat, pinned when the run was launched; empty for none.
        store: URI of the object store.
        tracking_uri: of MLflow's database.
        config: of the gate; the registered name.
        fingerprint: of source, configuration, seed and code.
        seed: of the bootstrap.
        result: JSON: `verdict`, `reasons`, `name`, `version`, `alias`, `digest`, `against` (the champion, or null),
            `differences` (null where nothing was compared).

    Raises:
        InputError: an input is not in its format.
        HardcaseError: the champion's evaluation is lost, or the registry cannot be read.
    """
    registry = Registry(tracking_uri, store)
    before = _table(registry.evaluation(config.name, champion), f"of champion {champion}") if champion else None
    decision = decide(
        _json(scores),
        _table(evaluation.read_bytes(), str(evaluation)),
        before,
        _json(drift),
        config,
        seed,
        f"{config.name}:{champion}",
    )
    judgement = {"verdict": decision.verdict, "reasons": as_tag(decision.reasons)}
    version = registry.register(config.name, model, evaluation, champion, fingerprint, judgement)
    alias = CHAMPION if decision.verdict == "promoted" else CHALLENGER
    registry.point(config.name, alias, version.number)
    registered = {
        "verdict": decision.verdict,
        "reasons": decision.reasons,
        "name": config.name,
        "version": version.number,
        "alias": alias,
        "digest": version["digest"],
        "against": int(champion) if champion else None,
        "differences": decision.differences,
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    write_whole(result, (json.dumps(registered, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); hand in what the step before wrote") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object; hand in what the step before wrote")
    return found


def _table(data: bytes, what: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(data), columns=["id", "aspect", "group", "truth", "dpa", "exact"])
    except pa.ArrowException as error:
        raise InputError(f"evaluation {what}: not a table of evaluate ({error}); hand in evaluation.parquet") from error
