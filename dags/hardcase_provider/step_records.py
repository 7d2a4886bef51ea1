"""Read what the steps of a run say of themselves: their records in the object store that `HARDCASE_STORE` names.

Kubeflow's details freeze once Argo compresses a large workflow, and hold no reason of a failure. The records are those
of `hardcase/registry/runs.py`: `notes/<run>/<step>.<number>.json`, the last number counts. A step that was served from
the cache has none, so Kubeflow's own state stays for it.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from hardcase_provider import bucket
from hardcase_provider.runs import DRIVER, ENDED

STATES: Final = {"running": "RUNNING", "succeeded": "SUCCEEDED", "failed": "FAILED", "refused": "FAILED"}
logger = logging.getLogger(__name__)
_unread: set[str] = set()  # stores that could not be read: said once


def with_records(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run whose nodes say of each step what the step's own record says.

    Args:
        run: as Kubeflow answers.
    """
    nodes = []
    for step, record in read_records(str(run.get("run_id"))).items():
        # One that ended without a word of its own was killed: Kubeflow knows what became of its pod.
        if record["state"] == "running" and run.get("state") in ENDED:
            continue
        node = {"display_name": step, "state": STATES[record["state"]], "refused": record["state"] == "refused"}
        times = {name: record[own] for name, own in (("start_time", "started"), ("end_time", "ended")) if record[own]}
        nodes.append({**node, **times, "error": {"message": record["message"]}})
    own = {name for node in nodes for name in (node["display_name"], f"{node['display_name']}{DRIVER}")}
    details = run.get("run_details") or {}
    others = [node for node in details.get("task_details") or [] if node.get("display_name") not in own]
    return {**run, "run_details": {**details, "task_details": [*others, *nodes]}}


def read_records(run_id: str) -> dict[str, dict[str, Any]]:
    """Return the last record of each step of a run, by step; none where no store is named or it cannot be read."""
    place = os.environ.get("HARDCASE_STORE", "").rstrip("/")
    try:
        texts = _read(f"{place}/notes/{run_id}") if place else {}
        last: dict[str, tuple[int, str]] = {}
        for name, text in texts.items():
            step, number, _ = name.rsplit(".", 2)
            last[step] = max(last.get(step, (0, "")), (int(number), text))
        return {step: json.loads(text) for step, (_, text) in last.items()}
    except Exception as error:  # of botocore, of the file system, of JSON: the run goes on without them
        if place not in _unread:
            _unread.add(place)
            logger.warning("records of steps cannot be read from %s: %s", place, error)
        return {}


def _read(uri: str) -> dict[str, str]:
    if uri.startswith("s3://"):
        return bucket.read_below(uri)
    folder = Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri)
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
