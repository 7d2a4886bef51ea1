"""Around a step: what it is given is checked, its private folder stays until it is done, nothing outlives a kill."""

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.notes import read_notes
from components.running import keyring, link_of, numbered, place_of, running, sharded, verified
from hardcase.audit.signing import DistrustError, make_key
from hardcase.data.digest import path_digest
from hardcase.data.store import Store, open_store
from hardcase.errors import HardcaseError, InputError

WORK = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from components.running import running

with running("work", sys.argv[1], {}, {}) as folder, ProcessPoolExecutor(1) as pool:
    sleeping = pool.submit(time.sleep, 600)
    while not pool._processes:
        time.sleep(0.01)
    print("worker", *pool._processes, flush=True)
    sleeping.result()
"""


@dataclass
class File:
    """An artifact as KFP hands it over."""

    path: str
    name: str = "table"
    metadata: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("HARDCASE_LAUNCHER_PID", "HARDCASE_RUN", "HARDCASE_RUN_DIR", "HARDCASE_STORE"):
        monkeypatch.delenv(name, raising=False)
    keys = tmp_path_factory.mktemp("keys")
    make_key(keys)
    monkeypatch.setenv("HARDCASE_SIGNING_KEY", str(keys / "signing.pem"))


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_workers_of_a_killed_step_die_with_it_and_leave_the_lock(tmp_path: Path) -> None:
    step = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert step.stdout is not None
    worker = int(next(line for line in step.stdout if line.startswith("worker")).split()[1])
    assert alive(worker)
    step.kill()
    step.wait()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
    (folder,) = tmp_path.iterdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_private_folder_is_the_same_for_the_same_work_until_it_is_done(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), running("sft", str(tmp_path), {}, {}, seed=1) as first:
        (first / "checkpoint").touch()
        raise RuntimeError("stopped")
    with running("sft", str(tmp_path), {}, {}, seed=2) as other:
        assert other != first
    with running("sft", str(tmp_path), {}, {}, seed=1) as again:
        assert (again / "checkpoint").exists()
    assert list(tmp_path.iterdir()) == []


def made(path: Path, step: str = "mine", name: str = "table", **inputs: File) -> File:
    """An artifact that a step wrote."""
    result = File(str(path), name)
    with running(step, str(path.parent / "scratch"), inputs, {name: result}, code="c"):
        path.write_bytes(path.name.encode())
    return result


def test_altered_input_is_refused_and_output_is_sealed(tmp_path: Path) -> None:
    given = made(tmp_path / "given")
    result = made(tmp_path / "made", "grpo", "trained", mined=given)
    assert result.metadata["sha256"] == path_digest(tmp_path / "made")
    link = link_of(result, keyring())
    assert (link.step, link.parameters) == ("grpo", {"code": "c"})
    assert link.materials == {"mined": given.metadata["sha256"]}
    assert link.products == {"trained": result.metadata["sha256"]}
    (tmp_path / "given").write_bytes(b"two")
    with pytest.raises(HardcaseError, match="missing or altered"):
        verified(given, keyring())
    with pytest.raises(SystemExit):
        made(tmp_path / "again", mined=given)


@pytest.mark.parametrize("how", ["no record", "of another file", "by a stranger"])
def test_input_that_no_trusted_step_signed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    given, other = made(tmp_path / "given"), made(tmp_path / "other")
    if how == "no record":
        del given.metadata["link"]
    elif how == "of another file":
        given.metadata["link"] = other.metadata["link"]
    else:
        make_key(tmp_path / "stranger")
        monkeypatch.setenv("HARDCASE_SIGNING_KEY", str(tmp_path / "stranger" / "signing.pem"))
    with pytest.raises(DistrustError):
        verified(given, keyring())
    if how == "by a stranger":
        make_key(tmp_path / "friend")
        monkeypatch.setenv("HARDCASE_TRUSTED_KEYS", str(tmp_path / "friend"))
        with pytest.raises(DistrustError, match="no good signature"):
            verified(given, keyring())


def test_without_a_key_no_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARDCASE_SIGNING_KEY")
    with pytest.raises(SystemExit), running("mine", str(tmp_path), {}, {}):
        pytest.fail("it ran")


def test_what_the_user_did_wrong_reaches_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_RUN_DIR", str(tmp_path / "run"))
    with pytest.raises(SystemExit) as left, running("ingest", str(tmp_path / "scratch"), {}, {}):
        raise InputError("row 3: no answer; add one")
    assert left.value.code == 2
    told = json.loads((tmp_path / "run" / "errors" / "ingest.json").read_text())
    assert (told["step"], told["exit_code"], told["message"]) == ("ingest", 2, "row 3: no answer; add one")
    assert any("ingest failed" in line for line in told["log"])


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """No launcher watches: notes go into the store."""
    monkeypatch.setenv("HARDCASE_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("HARDCASE_RUN", "run-1")
    return open_store((tmp_path / "store").as_uri())


def test_without_a_launcher_each_attempt_leaves_a_note_and_its_files(tmp_path: Path, pods: Store) -> None:
    given = made(tmp_path / "given", "rollout", "rollouts")
    with pytest.raises(RuntimeError), running("mine", str(tmp_path), {"rollouts": given}, {}):
        raise RuntimeError("the disk is full")
    first = {note.step: note for note in read_notes(pods, "run-1")}
    assert first["mine"].exit_code == 1
    assert first["mine"].message == "RuntimeError: the disk is full"
    assert any("the disk is full" in line for line in first["mine"].log)
    made(tmp_path / "mined", "mine", "mined", rollouts=given)
    notes = {note.step: note for note in read_notes(pods, "run-1")}
    assert notes["mine"].exit_code == 0, "the last attempt counts"
    assert set(notes["mine"].files) == {"rollout.rollouts", "mine.mined"}
    assert pods.get_object(notes["mine"].files["mine.mined"]) == b"mined"
    assert read_notes(pods, "run-2") == []


def test_a_refusal_holds_for_its_run_and_a_lost_pod_goes_on(
    tmp_path: Path, pods: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit), running("ingest", str(tmp_path), {}, {}):
        raise InputError("row 3: no answer; add one")
    with pytest.raises(SystemExit) as left, running("ingest", str(tmp_path), {}, {}):
        pytest.fail("tried again, though the input is at fault")
    assert left.value.code == 2
    assert read_notes(pods, "run-1")[0].message == "row 3: no answer; add one"
    monkeypatch.setenv("HARDCASE_RUN", "run-2")
    with pytest.raises(RuntimeError), running("ingest", str(tmp_path), {}, {}) as folder:
        (folder / "checkpoint").touch()
        raise RuntimeError("the pod was lost")
    with running("ingest", str(tmp_path), {}, {}) as folder:
        assert (folder / "checkpoint").exists()


@pytest.mark.parametrize(("count", "names"), [(1, ["answers"]), (2, ["answers-1-of-2", "answers-2-of-2"])])
def test_shards_are_told_apart_where_there_are_several(tmp_path: Path, count: int, names: list[str]) -> None:
    shards = [File(str(tmp_path / str(number))) for number in range(count)]
    assert numbered("answers", shards) == dict(zip(names, shards, strict=True))
    assert sharded("answer-sft", f"1/{count}") == ("answer-sft" if count == 1 else "answer-sft-1-of-2")


def test_a_pod_without_a_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARDCASE_STORE", raising=False)
    with pytest.raises(InputError, match="HARDCASE_STORE"):
        place_of()
