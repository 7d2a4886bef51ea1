"""Processes, locks and temporary folders that end with the process that made them, however it ends.

A child: the kernel kills it when its parent dies (prctl(2), PR_SET_PDEATHSIG). It watches the thread that forked, so
children are started by threads that live as long as they do.

A lock: flock(2)'s belongs to an open file, which a forked child shares. Each child closes its copies at once, so a lock
is held by the process that took it and by no other. (Locks of fcntl(2) are not shared with children, but do not exclude
threads of the same process, and closing any other file object of the same file releases them.)

A temporary folder: it is locked while its process lives. The next start removes folders that nothing locks.
"""

import ctypes
import fcntl
import multiprocessing
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "hardcase."
STOP: Final = "stop"  # a file in the scratch folder of a training, which asks it to save a checkpoint and to end
STOPPED: Final = 128 + signal.SIGTERM  # the exit code
LIBC: Final = ctypes.CDLL(None)
PR_SET_PDEATHSIG: Final = 1  # of <linux/prctl.h>
_forked_by = 0  # by which this process was forked, or its own number if it forked last
_tied = False
_locks: Final = set[int]()


def _note_parent() -> None:
    global _forked_by  # noqa: PLW0603  state of the process, as the kernel's
    _forked_by = os.getpid()


def _close_locks() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(before=_note_parent, after_in_child=_close_locks)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if _forked_by not in (0, os.getpid()) and os.getppid() != _forked_by:  # it died before the call
        os._exit(1)
    if (parent := multiprocessing.parent_process()) and not parent.is_alive():  # the same of one that was spawned
        os._exit(1)


def tie_children() -> None:
    """Let everything that this process forks from now on die with it, also of SIGTERM at once."""
    global _tied  # noqa: PLW0603
    if not _tied:
        _tied = True
        os.register_at_fork(after_in_child=_follow_parent)


def _follow_parent() -> None:
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent ends in order; what it orders is for the parent to say


def die_with_launcher() -> None:
    """End this process when the one that `HARDCASE_LAUNCHER_PID` names ends; and what it forks, when it ends."""
    tie_children()
    if not (launcher := os.environ.get("HARDCASE_LAUNCHER_PID")):
        return
    try:
        handle = os.pidfd_open(int(launcher))
    except ProcessLookupError:
        os._exit(1)
    poll = select.poll()
    poll.register(handle, select.POLLIN)

    def watch() -> None:
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process in order, with exit code 143: every context is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))


@contextmanager
def note_sigterm(file: Path) -> Iterator[None]:
    """Create `file` at SIGTERM, and let this process continue as long as the context lasts; its forks end as usual."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals nowhere else
        yield
        return
    owner = os.getpid()

    def note(*_: object) -> None:
        if os.getpid() != owner:
            os._exit(STOPPED)
        file.touch()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def hold_lock(path: Path, blocking: bool = True) -> Iterator[None]:
    """Hold the lock of an existing file or folder.

    Raises:
        BlockingIOError: another process holds it, and this one is not to wait.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that is only read
    _locks.add(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        yield
    finally:
        if handle in _locks:  # else this is a child
            _locks.remove(handle)
            os.close(handle)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Create a folder in `parent` (`$TMPDIR`) that lasts as long as the context; remove those of dead processes."""
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    with ExitStack() as lock:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            with suppress(FileNotFoundError):  # removed by another process, before it was locked
                lock.enter_context(hold_lock(folder))
                if folder.exists():
                    break
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process is dead."""
    for folder in parent.glob(f"{PREFIX}*/"):
        with suppress(OSError):  # of another user, locked, or removed by another process just now
            if folder.stat().st_uid == os.getuid():
                with hold_lock(folder, blocking=False):
                    shutil.rmtree(folder)
