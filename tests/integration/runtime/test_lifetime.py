"""What a killed process leaves: no child, no lock, and no temporary folder after the next start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hardcase.lifetime import PREFIX, hold_lock, temporary_folder
from hardcase.runners.home import Home

# A command with two workers at work: it holds the lock of its home and a temporary folder.
WORK = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from hardcase.lifetime import exit_on_sigterm, temporary_folder, tie_children
from hardcase.runners.home import Home

exit_on_sigterm()
tie_children()
with Home(Path(sys.argv[1])).locked(), temporary_folder(Path(sys.argv[2])), ProcessPoolExecutor(2) as pool:
    sleeping = [pool.submit(time.sleep, 600) for _ in range(2)]
    try:
        print(*pool._processes, flush=True)
        sleeping[0].result()
    except BaseException:
        for process in pool._processes.values():
            process.terminate()
        raise
"""


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for_end(processes: list[int]) -> None:
    limit = time.monotonic() + 20
    while any(map(alive, processes)):
        assert time.monotonic() < limit, "children outlive their parent"
        time.sleep(0.01)


@contextmanager
def at_work(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """Start the command, and yield it with its workers."""
    (folder / "temporary").mkdir()
    command = [sys.executable, "-c", WORK, str(folder / "home"), str(folder / "temporary")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        with pytest.raises(BlockingIOError), hold_lock(folder / "home" / "lock", blocking=False):
            pytest.fail("the lock is free while the command is at work")
        try:
            yield process, workers
        finally:
            process.kill()


def test_a_killed_command_leaves_no_worker_no_lock_and_its_folder_only_until_the_next_start(tmp_path: Path) -> None:
    with at_work(tmp_path) as (process, workers):
        process.kill()
        process.wait()
        wait_for_end(workers)
    with hold_lock(tmp_path / "home" / "lock", blocking=False):
        (left,) = (tmp_path / "temporary").iterdir()
    with temporary_folder(tmp_path / "temporary") as own:
        assert not left.exists()
        assert own.exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_lock_is_free_as_soon_as_its_process_is_dead_though_a_child_lives_on(tmp_path: Path) -> None:
    (lock := tmp_path / "lock").touch()
    code = (
        "import os, sys, time; from pathlib import Path; from hardcase.lifetime import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])):\n"
        "    if (child := os.fork()) == 0: print(os.getpid(), flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            assert alive(child)
            with hold_lock(lock, blocking=False):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_sigterm_ends_a_command_in_order(tmp_path: Path) -> None:
    with at_work(tmp_path) as (process, workers):
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
        wait_for_end(workers)
    assert list((tmp_path / "temporary").iterdir()) == [], "a command that ends in order removes its folder itself"


def test_the_next_command_in_a_home_removes_what_a_killed_replay_left_and_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / f"{PREFIX}dead" / "store").mkdir(parents=True)
    (tmp_path / "scratch" / "sft-1").mkdir(parents=True)
    with temporary_folder(tmp_path) as live, home.locked():
        assert live.exists()
        assert {path.name for path in tmp_path.iterdir()} == {live.name, "lock", "scratch"}
        assert (tmp_path / "scratch" / "sft-1").exists()
