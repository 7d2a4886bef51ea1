"""What a run of Kubeflow shows, read from answers of a real Kubeflow (tests/recordings/kubeflow)."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hardcase_provider.rest import Address
from hardcase_provider.runs import cancelled_at, describe_progress, find_failure, list_steps, step_states, summarise_run

from dags.tests.conftest import recorded

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
CHAIN = ["configure", "ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "evaluate", "drift"]
CHAIN += ["register", "conclude"]
PROBE = ["work", "tell"]
ADDRESS = Address("https://kubeflow.example", namespace="hardcase")


def run(name: str) -> dict[str, Any]:
    return recorded(name)["body"]


def test_steps_are_those_of_the_pipeline_in_their_order() -> None:
    [version] = recorded("versions-list")["body"]["pipeline_versions"]
    assert list_steps(version) == PROBE
    spec = next(yaml.load_all((PIPELINES / "retraining.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader))
    steps = list_steps({"pipeline_spec": {"pipeline_spec": spec, "platform_spec": {}}})
    named = [step for step in steps if step in CHAIN]
    assert sorted(named, key=CHAIN.index) == named
    assert set(named) == set(CHAIN)
    assert not {"root", "executor", "run", "exit-handler-1"} & set(steps), "a group is no step"
    assert list_steps({}) == []


@pytest.mark.parametrize(
    ("name", "steps", "step"),
    [
        ("run-fail-state-02-failed", PROBE, "work"),
        ("run-retried-state-1-failed", PROBE, "work"),
        ("run-failed-refused-input", CHAIN, "validate"),
        ("run-error-at-first-pod", CHAIN, ""),
        ("run-8-shards-too-large", CHAIN, ""),
    ],
)
def test_failing_step_is_named_and_no_pod_that_does_not_exist(name: str, steps: list[str], step: str) -> None:
    failed = run(name)
    told = f"its log: kubectl -n hardcase logs -l pipeline/runid={failed['run_id']}"
    assert find_failure(failed, steps, ADDRESS) == {"step": step, "message": told}


def test_step_whose_driver_failed_is_named() -> None:
    failed = run("run-failed-refused-input")
    for node in failed["run_details"]["task_details"]:
        if node.get("display_name") == "validate-driver":
            node["state"] = "FAILED"
        elif node.get("display_name") == "validate":
            del node["state"]  # omitted, as the steps after it
    assert find_failure(failed, CHAIN, ADDRESS)["step"] == "validate"


def test_message_of_the_failing_step_is_told_where_kubeflow_has_it() -> None:
    failed = run("run-failed-refused-input")
    for node in failed["run_details"]["task_details"]:
        if node.get("display_name") == "validate":
            node["state_history"][-1]["error"] = {"code": 2, "message": "exit code 1"}
    assert find_failure(failed, CHAIN, ADDRESS) == {"step": "validate", "message": "exit code 1"}


@pytest.mark.parametrize(
    ("name", "steps", "states"),
    [
        ("run-succeeded-cached", CHAIN, dict.fromkeys(CHAIN, "SUCCEEDED")),
        (
            "run-failed-refused-input",
            CHAIN,
            {"configure": "SUCCEEDED", "ingest": "SUCCEEDED", "validate": "FAILED", "conclude": "SUCCEEDED"},
        ),
        # Its details had stopped changing, with `for-loop-2` RUNNING: what ran after that is not known here.
        ("run-succeeded-smoke", CHAIN, dict.fromkeys(CHAIN[:7], "SUCCEEDED")),
        ("run-succeeded-after-lost-pod", CHAIN, dict.fromkeys(CHAIN[:7], "SUCCEEDED")),
        ("run-8-shards-too-large", CHAIN, dict.fromkeys(CHAIN[:4], "SUCCEEDED")),
        ("run-terminated-state-canceling", PROBE, {"work": "RUNNING"}),
        ("run-terminated-state-pending", PROBE, {}),
    ],
)
def test_states_are_those_of_the_chain(name: str, steps: list[str], states: dict[str, str]) -> None:
    found = step_states(run(name), steps)
    assert list(found.items()) == [(step, states[step]) for step in steps if step in states]
    assert len(json.dumps(summarise_run(run(name), steps, ADDRESS))) < 1500, "it lies in XCom"


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("run-terminated-state-running", ""),
        ("run-terminated-state-canceling", "2026-11-28T02:14:33Z"),
        ("run-terminated-state-failed", "2026-11-28T02:14:33Z"),
        ("run-terminated-final", "2026-11-28T02:14:33Z"),
        ("run-fail-state-02-failed", ""),
        ("run-error-at-first-pod", ""),
        ("run-retried-state-0-running", ""),
        ("run-succeeded-cached", ""),
    ],
)
def test_terminated_run_is_told_from_one_that_failed(name: str, moment: str) -> None:
    assert cancelled_at(run(name)) == moment


def test_terminated_run_that_is_tried_again_is_not_terminated() -> None:
    again = run("run-terminated-final")
    again["state_history"].append({"update_time": "2026-11-28T02:20:00Z", "state": "RUNNING"})
    assert cancelled_at({**again, "state": "RUNNING"}) == ""
    again["state_history"].append({"update_time": "2026-11-28T02:21:00Z", "state": "FAILED"})
    assert cancelled_at(again) == ""


@pytest.mark.parametrize(
    ("name", "steps", "minutes", "words"),
    [
        ("run-terminated-state-pending", PROBE, 0, "PENDING, at work: no step yet"),
        ("run-terminated-state-canceling", PROBE, 9, "CANCELING, at work: work"),
        ("run-terminated-state-running", PROBE, 1, "RUNNING, at work: no step yet"),
        (
            "run-terminated-state-running",
            PROBE,
            3,
            "RUNNING, at work: no step yet; a pod has been pending since 2026-11-28T02:13:41Z, which `kubectl -n "
            "hardcase describe pods -l pipeline/runid=04752029-28f1-469f-bbb5-0396675f528e` explains",
        ),
    ],
)
def test_progress_names_the_step_at_work_and_a_pod_that_waits(
    name: str, steps: list[str], minutes: int, words: str
) -> None:
    now = datetime(2026, 11, 28, 2, 13 + minutes, 50, tzinfo=UTC)
    assert describe_progress(run(name), steps, ADDRESS, now) == words


def test_driver_at_work_counts_for_its_step() -> None:
    going = run("run-8-shards-too-large")
    for node in going["run_details"]["task_details"]:
        if node.get("display_name") == "rollout":
            del node["state"]
    words = describe_progress({**going, "state": "RUNNING"}, CHAIN, ADDRESS, datetime(2026, 11, 28, 2, 31, tzinfo=UTC))
    assert words == "RUNNING, at work: rollout"
