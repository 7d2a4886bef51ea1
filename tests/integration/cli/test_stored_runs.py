"""The runs of a cluster seen from a workstation: from the records in the store alone."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hardcase.errors import HardcaseError
from hardcase.registry.runs import StepRecord, list_runs, read_run, write_record, write_run
from hardcase.store.store import Store, open_store
from tests.support.machine import COMMAND, Machine


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run that succeeded, one that failed later, and one that is at work."""
    store = open_store((tmp_path / "store").as_uri())
    model = {"name": "image-screener", "version": 3, "alias": "champion", "digest": "d"}
    page = store.put_object(b"<html>the report</html>")
    known: dict[str, Any] = {"snapshot": None, "profile": "smoke", "scores": None}
    ended = {**known, "status": "succeeded", "model": model, "report": page, "started": "2026-11-28T01:00:00+00:00"}
    write_run(store, "run-1", ended)
    error = {"step": "validate", "message": "too few rows", "refused": True}
    write_run(
        store,
        "run-2",
        {
            **known,
            "status": "failed",
            "error": error,
            "model": None,
            "report": None,
            "started": "2026-11-28T02:00:00+00:00",
        },
    )
    write_record(store, "run-3", StepRecord("configure", "succeeded", started="2026-11-28T03:00:00+00:00"))
    write_record(store, "run-3", StepRecord("sft", "running", started="2026-11-28T03:01:00+00:00"))
    return store


def test_runs_are_listed_the_newest_first_also_one_at_work(machine: Machine, store: Store) -> None:
    done = machine.call("runs", "--store", store.uri, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(run["run_id"], run["status"]) for run in found] == [
        ("run-3", "running"),
        ("run-2", "failed"),
        ("run-1", "succeeded"),
    ]
    assert found[0]["steps"] == {"configure": {"status": "succeeded"}, "sft": {"status": "running"}}
    assert "image-screener v3" in machine.call("runs", "--store", store.uri).stdout
    assert not machine.home.exists(), "to look makes no home"


def test_list_of_runs_fits_80_columns_and_cuts_nothing(machine: Machine, store: Store) -> None:
    run, model = "24283211-e4a6-4460-92ee-e16d7437fb4d", {"name": "image-screener", "version": 12}
    scores = {part: {"exact_match": 0.8125} for part in ("chance", "final")}
    known = {"profile": "internvl3-2b-lora", "status": "succeeded", "scores": scores, "started": ""}
    write_run(store, run, {"snapshot": None, "report": None, "model": {**model, "alias": "", "digest": ""}, **known})
    command = [*COMMAND, "runs", "--store", store.uri]
    environment = {**machine.environment, "COLUMNS": "80"}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    (row,) = (line for line in lines if line.startswith(run))
    assert "  succeeded  0.812" in row


def test_a_report_is_written_from_the_store_and_one_that_is_not_there_is_named(machine: Machine, store: Store) -> None:
    done = machine.call("report", "run-1", "--store", store.uri)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_text() == "<html>the report</html>"
    for run, said in (("run-2", "it has no report; it is failed"), ("run-9", "not recorded in"), ("latest", "running")):
        done = machine.call("report", run, "--store", store.uri)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_a_run_that_kubeflow_retried_is_as_it_ended_last(store: Store) -> None:
    assert read_run(store, "run-9") is None
    for status in ("failed", "succeeded"):
        write_run(store, "run-2", {"snapshot": None, "status": status, "started": "2026-11-28T02:00:00+00:00"})
    (again,) = [run for run in list_runs(store) if run["run_id"] == "run-2"]
    assert again["status"] == (read_run(store, "run-2") or {})["status"] == "succeeded"


def test_a_record_that_is_none_is_named(store: Store) -> None:
    store.put_named("runs/run-4.json", b"[]")
    with pytest.raises(HardcaseError, match=r"runs/run-4.json: not the record of a run"):
        list_runs(store)
