"""Around a step: what it is given is checked, its private folder stays until it is done, nothing outlives a kill."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import fetch_attestation
from hardcase.provenance.signing import DistrustError, make_key
from hardcase.registry.runs import read_records
from hardcase.runtime import running as around
from hardcase.runtime.materials import keyring, material_of
from hardcase.runtime.running import load_environment, read_locations, running
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store, open_store

WORK = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from hardcase.runtime.running import running

plan = {"store": sys.argv[1] + "/store", "scratch": sys.argv[1] + "/scratch", "parameters": {"code": "c"}}
with running("work", plan, {}) as work, ProcessPoolExecutor(1) as pool:
    sleeping = pool.submit(time.sleep, 600)
    while not pool._processes:
        time.sleep(0.01)
    print("worker", *pool._processes, flush=True)
    sleeping.result()
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("HARDCASE_LAUNCHER_PID", "HARDCASE_RUN", "HARDCASE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(around, "TERMINATION_MESSAGE", Path("/nowhere"))
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
    (folder,) = (tmp_path / "scratch").iterdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def plan(folder: Path, **parameters: Any) -> dict[str, Any]:
    places = {"store": (folder / "store").as_uri(), "scratch": str(folder / "scratch")}
    return {**places, "parameters": {"code": "c", **parameters}}


def test_private_folder_is_the_same_for_the_same_work_until_it_is_done(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), running("sft", plan(tmp_path, seed=1), {}) as first:
        (first.folder / "checkpoint").touch()
        raise RuntimeError("stopped")
    with running("sft", plan(tmp_path, seed=2), {}) as other:
        assert other.folder != first.folder
    with running("sft", plan(tmp_path, seed=1), {}) as again:
        assert (again.folder / "checkpoint").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def made(folder: Path, step: str, name: str, content: str = "", **inputs: str) -> str:
    """The attestation of a step that made one file."""
    with running(step, plan(folder), inputs) as work:
        (work.outputs / name).write_text(content or name)
    return work.attestation


def file_of(folder: Path, digest: str) -> Path:
    return folder / "store" / "objects" / digest[:2] / digest


def test_a_step_hands_on_its_attestation_and_its_products_lie_in_the_store(tmp_path: Path) -> None:
    store = open_store(plan(tmp_path)["store"])
    snapshot = made(tmp_path, "ingest", "snapshot")
    rollouts = made(tmp_path, "rollout", "rollouts", snapshot=snapshot)
    link = fetch_attestation(store, keyring(), rollouts)
    assert (link.step, link.parameters) == ("rollout", {"code": "c"})
    assert link.materials == {"snapshot": bytes_digest(b"snapshot")}
    assert link.products == {"rollouts": bytes_digest(b"rollouts")}
    assert link.attested_by == {"snapshot": snapshot}
    # What a step read can be had from its attestation too, and an empty one stands for none.
    with running("mine", plan(tmp_path), {"snapshot": rollouts, "rollouts": rollouts, "model": ""}) as work:
        assert work.input("snapshot").read_text() == "snapshot"
        assert work.input("rollouts").read_text() == "rollouts"
        assert work.materials["snapshot"].attested_by == snapshot
        assert set(work.materials) == {"snapshot", "rollouts"}
    with pytest.raises(HardcaseError, match="rollout made no model"):
        material_of("model", rollouts, store, keyring())


def test_equal_work_has_equal_content_whoever_did_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path, "ingest", "snapshot")
    monkeypatch.setenv("HARDCASE_WHO", "another")
    second = made(tmp_path, "ingest", "snapshot")
    other = made(tmp_path, "ingest", "snapshot", "more rows")
    # The same rollouts of other data are other work: a cache must tell them apart.
    alike = [made(tmp_path, "rollout", "rollouts", snapshot=each) for each in (first, second, other)]
    store = open_store(plan(tmp_path)["store"])
    contents = [fetch_attestation(store, keyring(), each).content for each in (first, second, *alike)]
    assert first != second
    assert contents[0] == contents[1]
    assert contents[2] == contents[3] != contents[4]


@pytest.mark.parametrize("how", ["altered", "missing"])
@pytest.mark.parametrize("what", ["product", "attestation"])
def test_what_is_not_as_it_was_signed_is_refused(tmp_path: Path, how: str, what: str) -> None:
    given = made(tmp_path, "mine", "mined")
    path = file_of(tmp_path, bytes_digest(b"mined") if what == "product" else given)
    path.unlink() if how == "missing" else path.write_bytes(b"two")
    with pytest.raises(SystemExit) as left, running("grpo", plan(tmp_path), {"mined": given}) as work:
        work.input("mined")
    assert left.value.code == 1


def test_an_attestation_that_no_trusted_step_signed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = made(tmp_path, "mine", "mined")
    make_key(tmp_path / "stranger")
    monkeypatch.setenv("HARDCASE_SIGNING_KEY", str(tmp_path / "stranger" / "signing.pem"))
    with pytest.raises(DistrustError, match="no good signature"):
        fetch_attestation(open_store(plan(tmp_path)["store"]), keyring(), given)


def test_without_a_key_no_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARDCASE_SIGNING_KEY")
    with pytest.raises(SystemExit), running("mine", plan(tmp_path), {}):
        pytest.fail("it ran")


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store in which a run leaves its records."""
    monkeypatch.setenv("HARDCASE_STORE", plan(tmp_path)["store"])
    monkeypatch.setenv("HARDCASE_RUN", "run-1")
    return open_store(plan(tmp_path)["store"])


def test_what_the_user_did_wrong_reaches_the_launcher_with_what_explains_it(
    tmp_path: Path, pods: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, running("ingest", plan(tmp_path), {}) as work:
        (work.outputs / "quarantine").write_text("row 3")
        raise InputError("row 3: no answer; add one")
    assert left.value.code == 2
    record = read_records(pods, "run-1")["ingest"]
    assert (record.step, record.state, record.message) == ("ingest", "refused", "row 3: no answer; add one")
    assert any("ingest failed" in line for line in record.log)
    assert record.left == {"quarantine": bytes_digest(b"row 3")}
    assert pods.get_object(record.left["quarantine"]) == b"row 3"
    marks = [
        json.loads(line[len(around.PROGRESS_MARK) :])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(around.PROGRESS_MARK)
    ]
    assert [mark["state"] for mark in marks] == ["running", "refused"]
    assert (marks[1]["message"], marks[1]["exit_code"]) == ("row 3: no answer; add one", 2)


def test_each_attempt_leaves_records(tmp_path: Path, pods: Store) -> None:
    given = made(tmp_path, "rollout", "rollouts")
    with pytest.raises(RuntimeError), running("mine", plan(tmp_path), {"rollouts": given}):
        assert read_records(pods, "run-1")["mine"].state == "running"
        raise RuntimeError("the disk is full")
    first = read_records(pods, "run-1")
    assert list(first) == ["rollout", "mine"]
    assert (first["mine"].state, first["mine"].message) == ("failed", "RuntimeError: the disk is full")
    assert any("the disk is full" in line for line in first["mine"].log)
    assert first["mine"].materials == [given]
    mined = made(tmp_path, "mine", "mined", rollouts=given)
    last = read_records(pods, "run-1")["mine"]
    assert (last.state, last.attestation) == ("succeeded", mined), "the last attempt counts"
    assert last.started <= last.ended
    assert read_records(pods, "run-2") == {}


def test_a_refusal_holds_for_its_run_and_a_lost_pod_goes_on(
    tmp_path: Path, pods: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit), running("ingest", plan(tmp_path), {}):
        raise InputError("row 3: no answer; add one")
    with pytest.raises(SystemExit) as left, running("ingest", plan(tmp_path), {}):
        pytest.fail("tried again, though the input is at fault")
    assert left.value.code == 2
    record = read_records(pods, "run-1")["ingest"]
    assert (record.state, record.message) == ("refused", "row 3: no answer; add one")
    monkeypatch.setenv("HARDCASE_RUN", "run-2")
    with pytest.raises(RuntimeError), running("ingest", plan(tmp_path), {}) as work:
        (work.folder / "checkpoint").touch()
        raise RuntimeError("the pod was lost")
    with running("ingest", plan(tmp_path), {}) as work:
        assert (work.folder / "checkpoint").exists()


@pytest.mark.parametrize(
    ("error", "state"), [(InputError("row 3: no answer"), "refused"), (HardcaseError("the disk is full"), "failed")]
)
def test_the_container_says_why_it_ended_where_argo_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HardcaseError, state: str
) -> None:
    # argo-workflows v4.0.5, workflow/controller/operator.go:1505: the node's message ends with the termination message.
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(around, "TERMINATION_MESSAGE", message)
    with pytest.raises(SystemExit), running("ingest", plan(tmp_path), {}):
        raise error
    assert message.read_text() == f"hardcase: {state}: {error}"


def test_mounted_variables_are_set_unless_they_are_set_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, credentials = tmp_path / "environment", tmp_path / "credentials"
    data = environment / "..2026_11_28"  # as the kubelet lays out a volume
    data.mkdir(parents=True)
    credentials.mkdir()
    (environment / "..data").symlink_to(data.name)
    for name, value in (("HARDCASE_STORE", "s3://bucket/prefix\n"), ("DO_NOT_TRACK", "1"), ("notes.txt", "none")):
        (data / name).write_text(value)
        (environment / name).symlink_to(f"..data/{name}")
    (credentials / "AWS_ENDPOINT_URL").write_text("http://127.0.0.1:9000")
    monkeypatch.setattr(around, "MOUNTED", (environment, credentials, tmp_path / "none"))
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    for name in ("AWS_ENDPOINT_URL", "HARDCASE_STORE"):  # set and removed, so that both are restored afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    load_environment()
    names = ("HARDCASE_STORE", "DO_NOT_TRACK", "AWS_ENDPOINT_URL", "notes.txt")
    assert [os.environ.get(name) for name in names] == ["s3://bucket/prefix", "0", "http://127.0.0.1:9000", None]


def test_a_pod_without_a_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARDCASE_STORE", raising=False)
    with pytest.raises(InputError, match="HARDCASE_STORE"):
        read_locations()
