"""Steps by their own records in the store, where Kubeflow's details have stopped changing."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hardcase_provider import bucket, step_records
from hardcase_provider.rest import Address
from hardcase_provider.runs import describe_progress, find_failure, step_states, summarise_run
from hardcase_provider.step_records import read_records, with_records

from dags.tests.conftest import recorded

STEPS = ["configure", "ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "evaluate", "drift", "register"]
ADDRESS = Address("https://kubeflow.example/pipeline", namespace="hardcase")
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


def test_records_count_where_details_are_frozen(store: Path) -> None:
    run = frozen()
    before = step_states(run, STEPS)
    assert "register" not in before
    for step in STEPS:
        write(store, run["run_id"], step, 1, "running")
        write(store, run["run_id"], step, 2, "succeeded")
    assert step_states(with_records(run), STEPS) == dict.fromkeys(STEPS, "SUCCEEDED")


def test_progress_is_the_records_and_the_last_attempt_counts(store: Path) -> None:
    run = {**frozen(), "state": "RUNNING"}
    for step in STEPS[:3]:
        write(store, run["run_id"], step, 2, "succeeded")
    for number, state in ((1, "running"), (2, "failed"), (10, "running")):
        write(store, run["run_id"], "sft", number, state)
    seen = with_records({**run, "run_details": {}})
    assert describe_progress(seen, STEPS, ADDRESS, datetime.now(UTC)) == "RUNNING, at work: sft"


def test_a_step_that_failed_is_named_with_its_own_message(store: Path) -> None:
    run: dict[str, Any] = recorded("run-failed-refused-input")["body"]
    write(store, run["run_id"], "validate", 2, "refused", message="12 rows are too few")
    failure = find_failure(with_records(run), STEPS, ADDRESS)
    assert failure == {"step": "validate", "message": "12 rows are too few", "refused": True}
    assert summarise_run(with_records(run), STEPS, ADDRESS)["failure"] == failure


def test_a_step_killed_without_a_word_is_kubeflows_to_tell(store: Path) -> None:
    run: dict[str, Any] = recorded("run-failed-refused-input")["body"]
    write(store, run["run_id"], "validate", 1, "running")
    assert find_failure(with_records(run), STEPS, ADDRESS)["step"] == "validate"


def test_a_store_that_cannot_be_read_is_said_once_and_changes_nothing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = frozen()
    path = store / "notes" / run["run_id"] / "sft.1.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert step_states(with_records(run), STEPS) == step_states(with_records(run), STEPS) == step_states(run, STEPS)
    assert caplog.text.count("records of steps cannot be read") == 1


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
