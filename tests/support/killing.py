"""Commands that are killed at random moments: what they leave, and what the next start does."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from hardcase.lifetime import hold_lock
from tests.support.machine import Machine

MOMENTS = int(os.environ.get("KILL_MOMENTS", "3"))  # of each command; CONTRIBUTING.md


def moments(longest: float, seed: int = 0) -> list[float]:
    """Return seconds after a start: one in each of as many equal parts of `longest`, in random order."""
    rng = random.Random(seed)
    drawn = [(part + rng.random()) * longest / MOMENTS for part in range(MOMENTS)]
    rng.shuffle(drawn)
    return drawn


def kill(machine: Machine, seconds: float, *arguments: str) -> bool:
    """Kill a command some seconds after its start; return whether it was still at work, with its children dead."""
    launcher = machine.start(*arguments)
    began = time.monotonic()
    while launcher.poll() is None and time.monotonic() - began < seconds:
        time.sleep(0.002)
    at_work = launcher.poll() is None
    launcher.kill()
    launcher.communicate()
    limit = time.monotonic() + 10
    while children := list(processes_of(machine)):
        assert time.monotonic() < limit, f"alive after the kill: {children}"
        time.sleep(0.02)
    if (lock := machine.home / "lock").exists():
        with hold_lock(lock, blocking=False):  # raises where another holds it
            pass
    return at_work


def processes_of(machine: Machine) -> Iterator[str]:
    """Yield the command lines of the processes that work in a home, by their environment."""
    mark = f"HARDCASE_HOME={machine.home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield (process / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def leftovers(machine: Machine, temporary: Path) -> list[Path]:
    """Return what killed commands left after a complete one: temporary folders and files, and drafts in the store.

    torch keeps a cache of its own in a folder that all processes of a user share.
    """
    store = machine.home / "store"
    return [
        *(path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")),
        *machine.home.glob("scratch/*"),
        *machine.home.glob("hardcase.*"),
        *(path for path in store.rglob("*") if path.is_file() and ("#" in path.name or path.name.startswith("."))),
    ]
