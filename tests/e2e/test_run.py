"""The whole chain on `profiles/smoke.yaml`, run once, and what a user does next: rerun it, damage it, kill it."""

import base64
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hardcase.compiled import list_steps
from hardcase.store.store import object_name
from tests.support.hostile import HostileFolder
from tests.support.killing import kill, leftovers, moments
from tests.support.machine import Machine

STEPS = list_steps("retraining")


@pytest.fixture(scope="module")
def first(machine):
    hostile = HostileFolder(machine.home.parent)  # in which every command of this file is run
    temporary = machine.home.parent / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        yield machine.run()
    assert hostile.imported == []
    assert list(temporary.iterdir()) == [], "runs leave nothing in the folder for temporary files"


def test_summary_has_the_shape_that_users_read(machine, first):
    assert first == machine.summary()
    assert set(first) >= {"run_id", "profile", "snapshot", "steps", "scores", "drift", "gate", "model", "report"}
    assert first["profile"] == "smoke"
    assert {name: step["status"] for name, step in first["steps"].items()} == dict.fromkeys(STEPS, "succeeded")
    assert not any(step["cached"] for step in first["steps"].values())
    for score in (first["scores"]["chance"], first["scores"]["sft"], first["scores"]["final"]):
        assert 0 <= score["overall"] <= 100
        assert 0 <= score["exact_match"] <= 1
        assert all(value is None or 0 <= value <= 100 for value in score["by_aspect"].values())
    assert set(first["drift"]) == {"drifted", "reference", "tests"}
    assert set(first["gate"]) == {"verdict", "reasons"}
    assert (first["status"], first["gate"]["verdict"]) == ("rejected", "rejected")
    assert set(first["model"]) == {"name", "version", "alias", "digest"}
    assert len(first["snapshot"]) == len(first["model"]["digest"]) == 64
    run = machine.home / "runs" / first["run_id"]
    assert Path(first["report"]) == run / "report.html"
    assert "<html" in Path(first["report"]).read_text(encoding="utf-8")
    assert (run / "config.yaml").is_file()
    assert pq.read_table(run / "quarantine.parquet").column_names == ["row", "id", "reason", "detail"]
    assert (machine.home / "latest").readlink() == Path("runs") / first["run_id"]


def test_model_far_below_chance_is_rejected_with_exit_3_and_screens_nothing(machine, first):
    done = machine.call("run", "--profile", "smoke")
    assert done.returncode == 3
    assert "rejected, now challenger" in done.stdout
    assert "error: rejected by the gate: overall 0.0 [too few groups] is not shown to be above chance" in done.stderr
    assert "0.0% of the answers are valid, fewer than the 81.9% wanted" in done.stderr
    image = machine.home.parent / "image.png"
    Image.new("RGB", (48, 48), "red").save(image)
    done = machine.call("screen", "--model", "image-screener@challenger", *[str(image)] * 5, "--json")
    assert done.returncode == 1
    assert [answer["answer"] for answer in json.loads(done.stdout).values()] == [None] * 4
    assert "error: image-screener@challenger: every answer is invalid" in done.stderr


def test_rerun_does_nothing_twice(machine, first):
    again = machine.run()
    assert [name for name, step in again["steps"].items() if not step["cached"]] == []
    assert again["model"] == first["model"]
    assert again["gate"] == first["gate"]
    assert again["run_id"] != first["run_id"]


@pytest.mark.parametrize("what", ["attestation", "product"])
def test_what_was_altered_is_made_anew_and_only_that(machine, first, what):
    attestation, statement = _attestations(machine)["mine"]
    if what == "product":
        (mined,) = statement["subject"]
        attestation = machine.home / "store" / object_name(mined["digest"]["sha256"])
    attestation.write_bytes(attestation.read_bytes()[:-8] + b"tampered")
    again = machine.run()
    anew = [name for name, step in again["steps"].items() if not step["cached"]]
    # Attestations name each other: what rests on one that is lost cannot be accounted for.
    rest = ["grpo", "answer", "evaluate", "drift"] if what == "attestation" else []
    assert anew == ["mine", *rest]
    assert again["model"] == first["model"]


def test_copied_home_serves_its_cache(machine, first, tmp_path):
    shutil.copytree(machine.home, tmp_path / "copied?home%", symlinks=True)
    again = Machine(tmp_path / "copied?home%").run()
    assert again["model"]["digest"] == first["model"]["digest"]
    trained = ("ingest", "validate", "sft", "rollout", "mine", "grpo", "answer")
    assert {name: again["steps"][name]["cached"] for name in trained} == dict.fromkeys(trained, True)


def test_lost_shard_is_made_anew(machine, first):
    shutil.rmtree(machine.home / "store" / "objects" / _shard(machine, first)[:2])
    again = machine.run()
    assert not again["steps"]["ingest"]["cached"]
    assert again["snapshot"] == first["snapshot"]
    assert again["model"] == first["model"]


def _attestations(machine):
    """The file and the statement of each step's attestation, of what the cache holds now, the newest last."""
    found = {}
    for entry in sorted((machine.home / "cache").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        path = machine.home / "store" / object_name(json.loads(entry.read_text())["Output"])
        statement = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
        found[statement["predicate"]["name"]] = path, statement
    return found


def _shard(machine, summary):
    manifest = machine.home / "store" / "objects" / summary["snapshot"][:2] / summary["snapshot"]
    return json.loads(manifest.read_text())["shards"][0]["sha256"]


def test_killed_while_training_goes_on_and_ends_with_the_same_model(machine, first):
    for step, (attestation, _) in _attestations(machine).items():
        for entry in (machine.home / "cache").glob("*.json"):
            if step in ("sft", "grpo") and attestation.name in entry.read_text():
                entry.unlink()
    _kill_at_first_checkpoint(machine, "sft")
    _kill_at_first_checkpoint(machine, "grpo")
    last = machine.run()
    assert last["model"] == first["model"]
    assert [name for name, step in last["steps"].items() if not step["cached"]] == ["grpo"]
    assert list(machine.home.glob("scratch/*")) == []


def _kill_at_first_checkpoint(machine, step):
    launcher = machine.start("run", "--profile", "smoke")
    deadline = time.monotonic() + 300
    while not list(machine.home.glob(f"scratch/{step}-*/**/checkpoint-*/complete")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline, f"{step} made no checkpoint"
        time.sleep(0.01)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    for _ in range(50):
        if not _children_of(launcher.pid):
            break
        time.sleep(0.1)
    assert _children_of(launcher.pid) == []
    assert list(machine.home.glob(f"scratch/{step}-*")), f"{step} ended before the kill"


def test_sigterm_ends_a_run_in_order_at_once_and_records_that_it_was_cancelled(machine, first):
    attestation, _ = _attestations(machine)["grpo"]
    for entry in (machine.home / "cache").glob("*.json"):
        if attestation.name in entry.read_text():
            entry.unlink()
    launcher = machine.start("run", "--profile", "smoke")
    while not list(machine.home.glob("scratch/grpo-*")):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    launcher.terminate()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert _children_of(launcher.pid) == []
    recorded = json.loads(machine.call("runs", "--store", str(machine.home / "store"), "--json").stdout)
    assert (recorded[0]["status"], recorded[0]["steps"]["grpo"]["status"]) == ("cancelled", "cancelled")
    assert machine.run()["model"] == first["model"]


def test_a_run_killed_at_random_moments_of_its_steps_leaves_nothing_and_ends_with_the_same_model(
    machine, first, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    attestations, at_work, drawn = _attestations(machine), 0, random.Random(1)
    for seconds in moments(8):
        again = drawn.choice(sorted(attestations))
        for entry in (machine.home / "cache").glob("*.json"):
            if attestations[again][0].name in entry.read_text():
                entry.unlink()
        at_work += kill(machine, seconds, "run", "--profile", "smoke")
    last = machine.run()
    assert (last["snapshot"], last["model"]) == (first["snapshot"], first["model"])
    assert leftovers(machine, tmp_path) == []
    assert at_work > 0


def test_an_evaluation_killed_at_random_moments_leaves_nothing_and_ends_with_the_same_scores(
    machine, first, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    evaluate = (
        "evaluate",
        "--model",
        "image-screener@challenger",
        "--source",
        "procedural://?samples=24&seed=7",
        "--json",
    )
    cache, before, at_work = machine.home / "cache", set((machine.home / "cache").glob("*.json")), 0
    complete = json.loads(machine.call(*evaluate).stdout)
    for seconds in moments(8):
        for entry in set(cache.glob("*.json")) - before:
            entry.unlink()
        at_work += kill(machine, seconds, *evaluate)
    last = json.loads(machine.call(*evaluate).stdout)
    assert (last["snapshot"], last["scores"]) == (complete["snapshot"], complete["scores"])
    assert leftovers(machine, tmp_path) == []
    assert at_work > 0


def _children_of(launcher):
    """Processes that the launcher started, found by what it put into their environment."""
    mark, found = f"HARDCASE_LAUNCHER_PID={launcher}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0") and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_a_home_of_killed_runs_is_cleaned_and_loses_no_model_and_no_cached_step(machine, first):
    """After the kills above, and the damage before them."""
    audit = ("audit", f"{first['model']['name']}:{first['model']['version']}")
    before = machine.call(*audit).stdout
    (folder := machine.home / "scratch" / "sft-0123456789abcdef").mkdir(parents=True)
    cleaned = json.loads(machine.call("clean", "--older-than", "0", "--json").stdout)["leftovers"]
    assert {str(folder), str(machine.home / "store" / "notes" / first["run_id"])} <= {left["path"] for left in cleaned}
    assert list((machine.home / "scratch").iterdir()) == list((machine.home / "store" / "notes").iterdir()) == []
    assert machine.call(*audit).stdout == before
    again = machine.run()
    assert [name for name, step in again["steps"].items() if not step["cached"]] == []
    assert again["model"] == first["model"]


def test_another_training_with_the_same_weights_is_accounted_for(machine, first):
    """GRPO changes no weight of this model; with a KL term it logs more. The scores of before rest on the other log."""
    again = machine.run("--set", "grpo.beta=0.1")
    assert again["error"] is None
    assert again["model"]["digest"] == first["model"]["digest"]
    assert [name for name, step in again["steps"].items() if step["cached"]] == [
        "ingest",
        "validate",
        "sft",
        "rollout",
        "mine",
    ]
