"""Report the progress of long work as log records, which the caller displays.

A record goes to the logger `hardcase.progress` with the attributes `what`, `done` and `total`.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger("hardcase.progress")
Item = TypeVar("Item")


def report(what: str, done: int, total: int) -> None:
    """Report that `done` of `total` units of `what` are finished."""
    logger.info("%s %d/%d", what, done, total, extra={"what": what, "done": done, "total": total})


def track(items: Iterable[Item], what: str, total: int | None = None, every: float = 0.5) -> Iterator[Item]:
    """Yield `items`, reporting progress at most once in `every` seconds and at the end."""
    size = total if total is not None else len(items) if isinstance(items, Sized) else 0
    last, done = time.monotonic(), 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every:
            last = time.monotonic()
            report(what, done, max(size, done))
    report(what, done, max(size, done))
