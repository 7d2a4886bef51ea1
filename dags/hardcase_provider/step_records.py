"""Read what the steps of a run record of themselves, in the object store that `HARDCASE_STORE` names.

The records are those of `hardcase/registry/runs.py`: `notes/<run>/<step>.<number>.json`, the last number counts.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hardcase.kubeflow.runs import Step, list_progress
from hardcase_provider import bucket

logger = logging.getLogger(__name__)
_unread: set[str] = set()  # stores that could not be read: logged once


def look_at_steps(run: Mapping[str, Any], names: Mapping[str, bool]) -> list[Step]:
    """Return the steps of a run, by their own records as far as there are any."""
    return list_progress(run, names, read_records(str(run.get("run_id"))), time.time())


def read_records(run_id: str) -> dict[str, dict[str, Any]]:
    """Return the last record of each step of a run, by step; none where no store is named or it cannot be read."""
    store = os.environ.get("HARDCASE_STORE", "").rstrip("/")
    try:
        texts = _read(f"{store}/notes/{run_id}") if store else {}
        last: dict[str, tuple[int, str]] = {}
        for name, text in texts.items():
            step, number, _ = name.rsplit(".", 2)
            last[step] = max(last.get(step, (0, "")), (int(number), text))
        return {step: json.loads(text) for step, (_, text) in last.items()}
    except Exception as error:  # of botocore, of the file system, of JSON: the wait continues without them
        if store not in _unread:
            _unread.add(store)
            logger.warning("records of steps cannot be read from %s: %s", store, error)
        return {}


def _read(uri: str) -> dict[str, str]:
    if uri.startswith("s3://"):
        return bucket.read_below(uri)
    folder = Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri)
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
