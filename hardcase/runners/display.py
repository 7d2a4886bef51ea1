"""A run as a person sees it: bars with the time left on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0


class Bars:
    """Shows steps and their progress on standard error; use as a context."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._what = ""
        self._began = self._said = 0.0

    def __enter__(self) -> "Bars":
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._progress.stop()

    def step_started(self, step: str) -> None:
        """A step begins to work."""
        self._reset()
        self._progress.add_task(step, total=None)
        if not self._console.is_terminal:
            self._console.print(f"{step}: started", highlight=False)

    def progress(self, step: str, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` are finished."""
        if what != self._what:
            self._reset()
            self._what, self._began = what, time.monotonic()
            self._said = self._began
            self._progress.add_task(step if step == what else f"{step}: {what}", total=total)
        if self._progress.task_ids:
            self._progress.update(self._progress.task_ids[-1], completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= PLAIN_EVERY:
            self._said = now
            left = (now - self._began) / max(done, 1) * (total - done)
            self._console.print(f"{step}: {what} {done}/{total}, {left:.0f} s left", highlight=False)

    def step_ended(self, step: str, status: str, seconds: float, cached: bool) -> None:
        """A step is over."""
        self._reset()
        mark = "✓" if status == "succeeded" else "✗"
        self._console.print(f"{mark} {step:<9} {'cached' if cached else f'{seconds:.1f} s'}", highlight=False)

    def _reset(self) -> None:
        self._what = ""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)


class _ToBars(logging.Handler):
    def __init__(self, bars: Bars, step: str) -> None:
        super().__init__()
        self._bars, self._step = bars, step

    def emit(self, record: logging.LogRecord) -> None:
        told = record.__dict__
        self._bars.progress(self._step, told["what"], told["done"], told["total"])


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
