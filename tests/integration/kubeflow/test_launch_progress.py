"""What is read of a run: on all recorded answers of a real Kubeflow, with and without the records of its steps."""

import copy
import gzip
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from hardcase.cli.package import load_package
from hardcase.kubeflow.runs import (
    KILLED,
    cancelled_at,
    describe_progress,
    explain_end,
    find_failure,
    is_frozen,
    list_progress,
    list_steps,
    summarise_run,
)
from hardcase.registry.runs import StepRecord
from tests.support.kubeflow_recordings import RECORDINGS, recorded

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
PROBE = {"work": False, "tell": True}
ALL = (*("configure", "ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "answer-2"),)
ALL = (*ALL, "evaluate", "drift", "register", "report", "conclude")
REFUSED = {"configure": "succeeded", "ingest": "succeeded", "validate": "failed", "conclude": "succeeded"}
OF_RUNS = {
    "run-8-shards-too-large": (
        {name: "succeeded" if name in ALL[:4] else "unknown" for name in ALL},
        "",
    ),
    "run-error-at-first-pod": (dict.fromkeys(ALL, "not reached"), ""),
    "run-fail-state-00-running": ({"work": "failed", "tell": "pending"}, "work"),
    "run-fail-state-01-running": ({"work": "failed", "tell": "running"}, "work"),
    "run-fail-state-02-failed": ({"work": "failed", "tell": "succeeded"}, "work"),
    "run-failed-refused-input": (dict.fromkeys(ALL, "not reached") | REFUSED, "validate"),
    "run-kill-state-00-running": ({"work": "succeeded", "tell": "pending"}, ""),
    "run-kill-state-01-running": ({"work": "succeeded", "tell": "running"}, ""),
    "run-kill-state-02-succeeded": ({"work": "succeeded", "tell": "succeeded"}, ""),
    "run-ok-state-00-running": ({"work": "succeeded", "tell": "pending"}, ""),
    "run-ok-state-01-running": ({"work": "succeeded", "tell": "running"}, ""),
    "run-ok-state-02-succeeded": ({"work": "succeeded", "tell": "succeeded"}, ""),
    "run-retried-state-0-running": ({"work": "failed", "tell": "succeeded"}, "work"),
    "run-retried-state-1-failed": ({"work": "failed", "tell": "succeeded"}, "work"),
    "run-short-state-00-running": ({"work": "running"}, ""),
    "run-short-state-01-running": ({"work": "succeeded", "tell": "pending"}, ""),
    "run-short-state-02-running": ({"work": "succeeded", "tell": "running"}, ""),
    "run-short-state-03-succeeded": ({"work": "succeeded", "tell": "succeeded"}, ""),
    "run-succeeded-after-lost-pod": (dict.fromkeys(ALL, "succeeded"), ""),
    "run-succeeded-cached": (dict.fromkeys(ALL, "succeeded"), ""),
    "run-succeeded-smoke": (dict.fromkeys(ALL, "succeeded"), ""),
    "run-terminated-final": ({"work": "cancelled", "tell": "succeeded"}, "work"),
    "run-terminated-state-canceling": ({"work": "running"}, ""),
    "run-terminated-state-failed": ({"work": "cancelled", "tell": "succeeded"}, "work"),
    "run-terminated-state-pending": ({}, ""),
    "run-terminated-state-running": ({}, ""),
    **dict.fromkeys((f"run-create-{mode}" for mode in ("fail", "kill", "ok", "short")), ({}, "")),
}
OF_NODES = {
    "probe-failed-retried": ("FAILED", {"work": "failed", "tell": "succeeded"}, "work"),
    "probe-succeeded": ("SUCCEEDED", {"work": "succeeded", "tell": "succeeded"}, ""),
    "probe-terminated": ("FAILED", {"work": "failed", "tell": "succeeded"}, "work"),
    "retrypolicy-always": ("RUNNING", {"work": "running"}, ""),
    "smoke-cached": ("SUCCEEDED", dict.fromkeys(ALL, "succeeded"), ""),
    "smoke-pod-deleted": ("SUCCEEDED", dict.fromkeys(ALL, "succeeded"), ""),
    "smoke-refused-input": ("FAILED", dict.fromkeys(ALL, "not reached") | REFUSED, "validate"),
    "smoke-succeeded": ("SUCCEEDED", dict.fromkeys(ALL, "succeeded"), ""),
}
# Of Argo's phases, as Kubeflow names them (kubeflow/pipelines 2.17.0, backend/src/apiserver/model/run.go:97).
PHASES = {"Succeeded", "Failed", "Running", "Pending", "Skipped"}


def failing(run, steps):
    """Step, message, and whether it refused its input."""
    failure = find_failure(run, steps, "hardcase")
    return failure["step"], failure["message"], failure["refused"]


def details(nodes):
    """Argo's nodes as Kubeflow shows them (kubeflow/pipelines 2.17.0, backend/src/common/util/workflow.go:906)."""
    return [
        {
            "display_name": node["displayName"],
            "start_time": node.get("startedAt") or "0001-01-01T00:00:00Z",
            "end_time": node.get("finishedAt") or "0001-01-01T00:00:00Z",
            "child_tasks": [{"pod_name": child} for child in node.get("children") or []],
            **({"state": node["phase"].upper()} if node["phase"] in PHASES else {}),
            **({"state": "FAILED"} if node["phase"] == "Error" else {}),
        }
        for node in nodes
    ]


@pytest.fixture(scope="module")
def retraining():
    """Steps of the pipeline that was recorded."""
    path = RECORDINGS.parent / "retraining-before.yaml.gz"
    return list_steps(next(yaml.load_all(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)))


def names_of(body, retraining):
    return PROBE if body["display_name"].startswith("probe") else retraining


def test_steps_of_a_pipeline_are_read_from_it_and_no_group_is_one(retraining):
    assert list(retraining) == list(ALL)
    assert [name for name, closing in retraining.items() if closing] == ["conclude"]
    [version] = recorded("versions-list")["body"]["pipeline_versions"]
    assert list_steps(version["pipeline_spec"]) == PROBE
    now = load_package("retraining")
    assert list(list_steps(yaml.load(now.content.split(b"\n---\n")[0], yaml.CSafeLoader))) == [
        *("configure", "ingest", "validate", "sft", "rollout", "mine", "grpo", "answer", "evaluate", "drift"),
        *("register", "conclude"),
    ]


def test_each_recording_has_its_place_in_these_tables():
    runs = {path.stem for path in RECORDINGS.glob("run-*.json") if "run_id" in (recorded(path.stem)["body"] or {})}
    assert runs == OF_RUNS.keys()
    assert {path.stem.removeprefix("argo-nodes-") for path in RECORDINGS.glob("argo-*.json")} == OF_NODES.keys()


@pytest.mark.parametrize("name", OF_RUNS)
def test_recorded_run_is_told_by_its_steps_each_once_and_the_failing_one(name, retraining):
    body = recorded(name)["body"]
    steps = list_progress(body, names_of(body, retraining), {}, NOW.timestamp())
    assert ({step.name: step.state for step in steps}, failing(body, steps)[0]) == OF_RUNS[name]
    assert len(steps) == len({step.name for step in steps})
    assert all(step.seconds >= 0 for step in steps)


@pytest.mark.parametrize("name", OF_NODES)
def test_recorded_workflow_is_told_by_its_steps(name, retraining):
    content = json.loads((RECORDINGS / f"argo-nodes-{name}.json").read_text())
    state, expected, failed_at = OF_NODES[name]
    run = {"run_id": "x", "state": state, "run_details": {"task_details": details(content["nodes"])}}
    names = retraining if "smoke" in name else PROBE
    steps = list_progress(run, names, {}, NOW.timestamp())
    assert ({step.name: step.state for step in steps}, failing(run, steps)[0]) == (expected, failed_at)


def test_details_made_of_recorded_nodes_are_those_that_kubeflow_showed():
    nodes = json.loads((RECORDINGS / "argo-nodes-smoke-cached.json").read_text())["nodes"]
    shown = recorded("run-succeeded-cached")["body"]["run_details"]["task_details"]

    def known(tasks):
        return sorted((task["display_name"], task.get("state", "")) for task in tasks if "display_name" in task)

    assert known(details(nodes)) == known(shown)


@pytest.mark.parametrize(
    ("name", "cancelled", "frozen"),
    [
        ("run-terminated-final", True, False),
        ("run-terminated-state-canceling", True, False),
        ("run-terminated-state-running", False, False),
        ("run-failed-refused-input", False, False),
        ("run-succeeded-smoke", False, True),
        ("run-succeeded-after-lost-pod", False, True),
        ("run-8-shards-too-large", False, True),
        ("run-succeeded-cached", False, False),
    ],
)
def test_terminated_run_and_frozen_details_are_known(name, cancelled, frozen):
    run = recorded(name)["body"]
    assert (bool(cancelled_at(run)), is_frozen(run)) == (cancelled, frozen)


def test_terminated_run_is_known_by_the_moment_at_which_it_was():
    states = ("canceling", "failed")
    for name in ("run-terminated-final", *(f"run-terminated-state-{state}" for state in states)):
        assert cancelled_at(recorded(name)["body"]) == "2026-11-28T02:14:33Z"


@pytest.mark.parametrize(
    ("name", "minutes", "words"),
    [
        ("run-terminated-state-pending", 0, "PENDING, at work: no step yet"),
        ("run-terminated-state-canceling", 9, "CANCELING, at work: work"),
        ("run-terminated-state-running", 1, "RUNNING, at work: no step yet"),
        ("run-ok-state-00-running", 0, "RUNNING, at work: tell"),
        (
            "run-terminated-state-running",
            3,
            "RUNNING, at work: no step yet; a pod has been pending since 2026-11-28T02:13:41Z, which `kubectl -n "
            "hardcase describe pods -l pipeline/runid=04752029-28f1-469f-bbb5-0396675f528e` explains",
        ),
    ],
)
def test_progress_names_the_step_at_work_and_a_pod_that_waits(name, minutes, words):
    body, now = recorded(name)["body"], datetime(2026, 11, 28, 2, 13 + minutes, 50, tzinfo=UTC).timestamp()
    assert describe_progress(body, list_progress(body, PROBE, {}, now), "hardcase", now) == words


@pytest.mark.parametrize("name", OF_RUNS)
def test_summary_of_a_run_fits_into_xcom(name, retraining):
    body = recorded(name)["body"]
    steps = list_progress(body, names_of(body, retraining), {}, NOW.timestamp())
    summary = summarise_run(body, steps, link="https://kubeflow.example/#/runs/details/x")
    assert len(json.dumps(summary)) < 1500
    assert (explain_end(summary, {})[1] == "") == (body["state"] == "SUCCEEDED")


def test_run_that_was_terminated_and_retried_is_not_cancelled():
    run = copy.deepcopy(recorded("run-terminated-final")["body"])
    run["state_history"].append({"state": "RUNNING"})
    run["state"] = "RUNNING"
    assert not cancelled_at(run)
    run["state"] = "SUCCEEDED"
    run["state_history"][-1]["state"] = "CANCELING"
    assert not cancelled_at(run)


def record(step, state, start=0, seconds=0, message=""):
    began = datetime(2026, 11, 28, 2, tzinfo=UTC) + timedelta(seconds=start)
    ended = (began + timedelta(seconds=seconds)).isoformat() if seconds else ""
    return {step: asdict(StepRecord(step, state, message, started=began.isoformat(), ended=ended))}


def progress(body, names, records, **more):
    steps = list_progress(body, names, records, NOW.timestamp(), **more)
    return {step.name: step.state for step in steps}, failing(body, steps)


def test_frozen_run_is_told_by_its_records(retraining):
    body = recorded("run-succeeded-smoke")["body"]
    ran = record("configure", "succeeded", 0, 5) | record("grpo", "succeeded", 9, 9)
    states, _ = progress(body, retraining, ran | record("register", "succeeded", 30, 5))
    done = ("configure", "grpo", "register", "conclude")
    assert states == {name: "succeeded" if name in done else "cached" for name in ALL}
    failed = {**body, "state": "FAILED"}
    states, failure = progress(failed, retraining, ran | record("drift", "failed", 30, 5, "no reference"))
    assert failure == ("drift", "no reference", False)
    assert [states[name] for name in ("answer", "evaluate", "drift", "register", "report")] == [
        *("cached", "cached", "failed", "not reached", "not reached"),
    ]


def test_refused_input_is_told_with_its_own_message(retraining):
    body = recorded("run-failed-refused-input")["body"]
    records = record("configure", "succeeded", 0, 5) | record("validate", "refused", 9, 2, "row 7: no label")
    states, failure = progress(body, retraining, records | record("conclude", "succeeded", 20, 2))
    assert failure == ("validate", "row 7: no label", True)
    assert (states["ingest"], states["validate"], states["sft"]) == ("cached", "refused", "not reached")


@pytest.mark.parametrize(
    ("name", "cancelled", "state", "message"),
    [("run-fail-state-02-failed", False, "failed", KILLED), ("run-terminated-final", True, "cancelled", "")],
)
def test_step_that_left_no_end_was_killed_or_cancelled(name, cancelled, state, message):
    body = recorded(name)["body"]
    [work, _] = list_progress(body, PROBE, record("work", "running"), NOW.timestamp(), cancelled)
    assert (work.state, work.message) == (state, message)


def test_step_whose_pod_waits_is_pending_and_one_that_will_be_tried_again_is_retrying():
    body = recorded("run-short-state-00-running")["body"]
    assert progress(body, {"before": False, **PROBE}, record("before", "succeeded", 0, 5))[0]["work"] == "pending"
    assert progress(body, PROBE, record("work", "failed", 0, 5, "no disk"))[0] == {"work": "retrying"}
    assert progress(body, PROBE, record("work", "running"))[0] == {"work": "running"}


def test_driver_that_fails_is_told_by_its_step():
    body = recorded("run-fail-state-02-failed")["body"]
    for task in body["run_details"]["task_details"]:
        if task.get("display_name") == "work":
            del task["state"]
        if task.get("display_name") == "work-driver":
            task["state"] = "FAILED"
    states, failure = progress(body, PROBE, {})
    assert (states["work"], failure[0]) == ("failed", "work")


def test_message_of_a_node_is_told_where_kubeflow_has_one():
    body = recorded("run-fail-state-02-failed")["body"]
    [work] = [task for task in body["run_details"]["task_details"] if task.get("display_name") == "work"]
    work["state_history"][-1]["error"] = {"code": 2, "message": "evicted"}
    assert progress(body, PROBE, {})[1] == ("work", "evicted", False)
