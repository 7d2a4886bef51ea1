"""What a step says of itself to whoever tells of the run as a whole, where nobody watches its processes.

On one machine the launcher watches, and only errors are noted, in the run's folder (`HARDCASE_RUN_DIR`). On a cluster
the exit handler comes when all pods are gone: each step leaves one note in the store under the run's id, and there, by
their sha256, the files that it read and wrote. A step of which there is no note never ran, was served from the cache,
or was killed.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from hardcase.data.store import Store, open_store
from hardcase.errors import HardcaseError

NOTES: Final = "notes"
LAST_LINES: Final = 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """Of one attempt at a step.

    Attributes:
        step: its name.
        exit_code: 0 if it was done.
        message: what it failed of.
        log: the last lines of its log, if it failed.
        files: sha256 of the files that it read or wrote, by `step.output`.
    """

    step: str
    exit_code: int = 0
    message: str = ""
    log: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def leave(note: Note, files: Mapping[str, Path]) -> None:
    """Leave a note, where someone will look for it; that it cannot be left is no error of the step's.

    Args:
        note: without files.
        files: that it read or wrote, by `step.output`; folders are left out.
    """
    run, store = os.environ.get("HARDCASE_RUN"), os.environ.get("HARDCASE_STORE")
    if folder := os.environ.get("HARDCASE_RUN_DIR"):
        if note.exit_code:
            path = Path(folder) / "errors" / f"{note.step}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(note)), encoding="utf-8")
    elif run and store:
        try:
            _leave_in(open_store(store), run, note, files)
        except HardcaseError:
            logger.exception("no note of %s was left", note.step)


def _leave_in(store: Store, run: str, note: Note, files: Mapping[str, Path]) -> None:
    kept = {name: store.put_object(path.read_bytes()) for name, path in files.items() if path.is_file()}
    data = json.dumps({**asdict(note), "files": kept}).encode()
    for attempt in count(1):
        if store.put_named(f"{NOTES}/{run}/{note.step}.{attempt}.json", data):
            return


def read_notes(store: Store, run: str) -> list[Note]:
    """The last note of each step of a run, in order of their names."""
    last: dict[str, tuple[int, str]] = {}
    for name in store.names(f"{NOTES}/{run}"):
        step, attempt, _ = name.rpartition("/")[2].rsplit(".", 2)
        last[step] = max(last.get(step, (0, "")), (int(attempt), name))
    found: list[dict[str, Any]] = [json.loads(store.get_named(name) or b"{}") for _, name in last.values()]
    return [Note(**each) for each in found]


class LastLines(logging.Handler):
    """The last lines of the log, kept in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LAST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(self.format(record).splitlines())
