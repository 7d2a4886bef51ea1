"""Run the step `ingest` alone: a source becomes a snapshot, without a pipeline around it."""

import json
from pathlib import Path
from typing import Any

from hardcase.config import IngestConfig
from hardcase.data.listing import source_digest
from hardcase.provenance.code import code_digest
from hardcase.registry.runs import write_run
from hardcase.runners.display import showing
from hardcase.runners.home import Home
from hardcase.runtime.running import private_folder
from hardcase.steps.ingest import run
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_store, write_atomically


def ingest_source(source: str, config: IngestConfig, home: Home, profile: str) -> tuple[Path, dict[str, Any]]:
    """Ingest a source in a run folder of its own, and return the folder and the result.

    A stopped ingest of the same data continues, if code and configuration are the same too.
    """
    made_of = [source, source_digest(source, home.root), config.model_dump(mode="json"), code_digest()]
    digest = bytes_digest(canonical_json(made_of))
    folder = home.new_run(digest, newest=False)
    with showing("ingest"), private_folder(home.root / "scratch" / f"ingest-{digest[:16]}") as scratch:
        done = run(source, home.store, config, folder / "manifest.json", folder / "quarantine.parquet", scratch)
    result = done._asdict()
    summary = {"run_id": folder.name, "profile": profile, "status": "ingested", **result}
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    write_run(open_store(home.store), folder.name, summary)
    return folder, result
