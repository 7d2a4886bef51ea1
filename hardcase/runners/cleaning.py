"""What killed and ended runs leave on a machine, and its removal.

Nothing of it is part of a model or is named by an audit: objects, ledgers, dossiers, keys, records of runs, reports,
logs and metrics are no leftovers, nor are KFP's files of a run, without which its cache does not serve `evaluate`.
Nothing that is in use is removed: a run holds the lock of its home, a step that of its scratch folder. Of a store that
several homes share, records of steps are removed if the run ended or was this home's, and drafts if they are older than
any write.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from hardcase.lifetime import PREFIX, hold_lock
from hardcase.registry.runs import RECORDS, RUNS
from hardcase.runners.home import Home
from hardcase.store.cache import open_cache
from hardcase.store.location import parse_local_path

DRAFT: Final = "draft of a killed process"
LONGEST_WRITE: Final = 3600  # seconds, of a draft in a folder that others write to without a lock of the home


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing needs any more, with its size in bytes."""

    what: str
    path: Path
    size: int


def list_leftovers(home: Home, before: float) -> list[Leftover]:
    """List what was last written before a time, in seconds since 1970, and no process uses."""
    runs = sorted(home.runs.glob("*/"))
    try:
        with hold_lock(home.root / "lock", blocking=False):
            return _list(home, before, runs)
    except FileNotFoundError:  # there was no run
        return _list(home, before, runs)
    except BlockingIOError:
        return _list(home, before, runs[:-1])


def _list(home: Home, before: float, runs: Sequence[Path]) -> list[Leftover]:
    leftovers = []
    for what, path in _list_candidates(home, runs):
        with suppress(OSError):  # locked, of another user, or removed just now
            stats = [entry.lstat() for entry in chain([path], path.rglob("*") if path.is_dir() else ())]
            end = min(before, time.time() - LONGEST_WRITE) if what == DRAFT else before
            if path.is_symlink() or max(stat.st_mtime for stat in stats) >= end:
                continue
            if path.is_dir():
                with hold_lock(path, blocking=False):
                    pass
            leftovers.append(Leftover(what, path, sum(stat.st_size for stat in stats)))
    return leftovers


def remove_leftovers(home: Home, before: float) -> list[Leftover]:
    """Remove what `list_leftovers` lists, as soon as no run works in the home, and return what was removed."""
    removed = []
    with home.locked():
        for leftover in _list(home, before, sorted(home.runs.glob("*/"))):
            with suppress(BlockingIOError, FileNotFoundError):
                if leftover.path.is_dir():
                    with hold_lock(leftover.path, blocking=False):
                        shutil.rmtree(leftover.path)
                else:
                    leftover.path.unlink()
                removed.append(leftover)
    return removed


def _list_candidates(home: Home, runs: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    root = home.root
    yield from _name("scratch folder of a step that was stopped", root.glob("scratch/*/"))
    yield from _name("kernels that torch compiled", [root / "torchinductor"])
    folders = [root.glob(".*.draft*"), home.keys.glob(".*"), root.glob("cache/.*")]
    drafts = chain(*folders, *(run.glob(".*.draft") for run in runs))
    cached = (path for path in open_cache().folder.glob(".*") if path.name != ".lock")
    yield from _name(DRAFT, chain(drafts, cached))
    temporary = Path(tempfile.gettempdir()).glob(f"{PREFIX}*/")
    mine = (path for path in temporary if path.lstat().st_uid == os.getuid())
    yield from _name("temporary folder of a killed process", mine)
    if not home.store.startswith("s3://"):
        store, own = parse_local_path(home.store), {run.name for run in runs}
        records = store.glob(f"{RECORDS}/*/")
        ended = (path for path in records if path.name in own or (store / RUNS / f"{path.name}.json").exists())
        yield from _name("step records of a run that ended", ended)
        # obstore writes `NAME#1`, and renames it.
        yield from _name(DRAFT, chain(store.rglob("*#[0-9]"), store.rglob(".*.draft")))


def _name(what: str, paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    yield from ((what, path) for path in paths if path.exists())
