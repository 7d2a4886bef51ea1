"""A run as a person sees it: bars with the time left on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0


class Bars(Progress):
    """Shows steps and their progress on standard error; use as a context."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        super().__init__(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
        )
        self._what = ""
        self._began = self._printed = 0.0

    def show_start(self, step: str) -> None:
        """Show that a step begins to work."""
        self._clear()
        self.add_task(step, total=None)
        if self.disable:
            self.console.print(f"{step}: started")

    def show_progress(self, step: str, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of `what` are finished."""
        now = time.monotonic()
        if what != self._what:
            self._clear()
            self._what, self._began, self._printed = what, now, now
            self.add_task(step if step == what else f"{step}: {what}", total=total)
        self.update(self.task_ids[-1], completed=done, total=total)
        if self.disable and now - self._printed >= PLAIN_EVERY:
            self._printed = now
            left = (now - self._began) / max(done, 1) * (total - done)
            self.console.print(f"{step}: {what} {done}/{total}, {left:.0f} s left")

    def show_end(self, step: str, status: str, seconds: float, cached: bool) -> None:
        """Show that a step is over."""
        self._clear()
        mark = "✓" if status == "succeeded" else "✗"
        self.console.print(f"{mark} {step:<9} {'cached' if cached else f'{seconds:.1f} s'}")

    def _clear(self) -> None:
        self._what = ""
        for task in self.task_ids:
            self.remove_task(task)


class _ToBars(logging.Handler):
    def __init__(self, bars: Bars, step: str) -> None:
        super().__init__()
        self._bars, self._step = bars, step

    def emit(self, record: logging.LogRecord) -> None:
        self._bars.show_progress(self._step, *(record.__dict__[name] for name in ("what", "done", "total")))


@contextmanager
def showing(step: str) -> Iterator[None]:
    """Draw the progress of a step that runs in this process."""
    logger = logging.getLogger("hardcase.progress")
    with Bars() as bars:
        handler = _ToBars(bars, step)
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
