"""Steps by their own records in the store, where Kubeflow's details have stopped changing."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from hardcase_provider import bucket, step_records
from hardcase_provider.step_records import look_at_steps, read_records

from dags.tests.conftest import recorded
from hardcase.kubeflow.runs import describe_progress, find_failure

STEPS = ["configure", "ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "evaluate", "drift", "register"]
NAMES = dict.fromkeys(STEPS, False)
RECORD: dict[str, Any] = {"message": "", "log": [], "started": "2026-11-28T02:00:00.000+00:00", "ended": ""}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARDCASE_STORE", tmp_path.as_uri())
    monkeypatch.setattr(step_records, "_unread", set())
    return tmp_path


def write(store: Path, run: str, step: str, number: int, state: str, **more: Any) -> None:
    path = store / "notes" / run / f"{step}.{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = "" if state == "running" else "2026-11-28T02:01:00.000+00:00"
    path.write_text(json.dumps({**RECORD, "step": step, "state": state, "ended": ended, **more}))


def frozen() -> dict[str, Any]:
    """The smoke run as recorded: SUCCEEDED, though its details show steps RUNNING for ever."""
    run: dict[str, Any] = recorded("run-succeeded-smoke")["body"]
    return run


def states(run: dict[str, Any]) -> dict[str, str]:
    return {step.name: step.state for step in look_at_steps(run, NAMES)}


def test_records_count_where_details_are_frozen(store: Path) -> None:
    run = frozen()
    write(store, run["run_id"], "register", 1, "running")
    write(store, run["run_id"], "register", 2, "succeeded")
    assert states(run) == {**dict.fromkeys(STEPS, "cached"), "register": "succeeded"}


def test_progress_is_the_records_and_the_last_attempt_counts(store: Path) -> None:
    run = {**frozen(), "state": "RUNNING", "run_details": {}}
    for step in STEPS[:3]:
        write(store, run["run_id"], step, 2, "succeeded")
    for number, state in ((1, "running"), (2, "failed"), (10, "running")):
        write(store, run["run_id"], "sft", number, state)
    words = describe_progress(run, look_at_steps(run, NAMES), "hardcase", time.time())
    assert words == "RUNNING, at work: sft"


def test_a_step_that_failed_is_named_with_its_own_message(store: Path) -> None:
    run: dict[str, Any] = recorded("run-failed-refused-input")["body"]
    write(store, run["run_id"], "validate", 2, "refused", message="12 rows are too few")
    failure = find_failure(run, look_at_steps(run, NAMES), "hardcase")
    assert failure == {"step": "validate", "message": "12 rows are too few", "refused": True}


def test_a_step_killed_without_a_word_is_said_to_be_killed(store: Path) -> None:
    run: dict[str, Any] = recorded("run-failed-refused-input")["body"]
    write(store, run["run_id"], "validate", 1, "running")
    failure = find_failure(run, look_at_steps(run, NAMES), "hardcase")
    assert (failure["step"], "its pod was killed" in failure["message"]) == ("validate", True)


def test_a_store_that_cannot_be_read_is_said_once_and_changes_nothing(
    store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = frozen()
    path = store / "notes" / run["run_id"] / "sft.1.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        seen = [states(run) for _ in range(2)]
    assert caplog.text.count("records of steps cannot be read") == 1
    monkeypatch.delenv("HARDCASE_STORE")
    assert seen == [states(run)] * 2


def test_without_a_store_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARDCASE_STORE", raising=False)
    assert read_records("run-0") == {}


def test_s3_is_read_by_the_hook_of_airflows_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hook:
        """The two calls of S3Hook that are made."""

        def list_keys(self, bucket_name: str, prefix: str) -> list[str]:
            assert (bucket_name, prefix) == ("artifacts", "main/notes/run-0/")
            return [f"{prefix}sft.1.json", f"{prefix}sft.2.json"]

        def read_key(self, key: str, bucket_name: str) -> str:
            state = "succeeded" if key.endswith(".2.json") else "running"
            return json.dumps({**RECORD, "step": "sft", "state": state})

    monkeypatch.setattr(bucket, "_hook", Hook)
    monkeypatch.setenv("HARDCASE_STORE", "s3://artifacts/main")
    assert read_records("run-0")["sft"]["state"] == "succeeded"
