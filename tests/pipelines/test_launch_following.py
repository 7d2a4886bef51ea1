"""A run that is followed: what is seen of it, how it ends, and what a lost connection does."""

from datetime import UTC, datetime

import kfp_server_api as api
import pytest

from hardcase.errors import HardcaseError
from pipelines.client import Address, Client, Refused, Unreachable
from pipelines.following import Gone, Unknown, concluded, failures, follow, steps_of
from pipelines.sending import Kubeflow


class Seen:
    """Keeps what it is told."""

    def __init__(self):
        self.states, self.problems = [], []

    def saw(self, run):
        self.states.append(run.state)

    def missed(self, problem):
        self.problems.append(problem)


@pytest.fixture
def client(kubeflow):
    return Kubeflow(Client(Address(kubeflow.url, timeout=0.5, pause=0.001)))


@pytest.fixture
def run_id(kubeflow):
    return kubeflow.create_run({"display_name": "key"})["run_id"]


def script(kubeflow, *states):
    """Let the run be in another state at each look, and stay in the last."""
    left = list(states)

    def change(run):
        run["state"] = left.pop(0) if len(left) > 1 else left[0]

    kubeflow.before_get = change


@pytest.mark.parametrize("end", ["SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"])
def test_each_end_is_an_end(kubeflow, client, run_id, end):
    script(kubeflow, "PENDING", "RUNNING", "CANCELING", end)
    seen = Seen()
    assert follow(client, run_id, seen, poll=0.01).state == end
    assert seen.states == ["PENDING", "RUNNING", "CANCELING", end]


@pytest.mark.parametrize("fault", ["drop", 503, 500, 429, 0.8])
def test_outage_is_survived_and_said(kubeflow, client, run_id, fault):
    script(kubeflow, "RUNNING", "SUCCEEDED")

    def outage(run):
        kubeflow.fault("GET runs/", *[fault] * 6)
        script(kubeflow, "SUCCEEDED")

    kubeflow.before_get = outage
    seen = Seen()
    assert follow(client, run_id, seen, poll=0.01).state == "SUCCEEDED"
    assert len(seen.problems) == 1
    assert "the run goes on" in seen.problems[0]


def test_silence_beyond_patience_is_an_error(kubeflow, client, run_id):
    script(kubeflow, "RUNNING")
    kubeflow.before_get = lambda run: kubeflow.fault("GET runs/", *[503] * 100)
    with pytest.raises(Unreachable, match="HTTP 503"):
        follow(client, run_id, Seen(), poll=0.01, patience=0.05)


def test_server_that_never_answered_is_an_error_at_once(kubeflow, client, run_id):
    kubeflow.fault("GET runs/", *[503] * 100)
    seen = Seen()
    with pytest.raises(Unreachable):
        follow(client, run_id, seen, poll=0.01)
    assert not seen.problems


def test_deleted_run_is_told_from_one_that_never_was(kubeflow, client, run_id):
    kubeflow.before_get = lambda run: kubeflow.runs.clear()
    with pytest.raises(Gone, match=f"run {run_id} is gone from Kubeflow: someone deleted it") as gone:
        follow(client, run_id, Seen(), poll=0.01)
    assert gone.value.exit_code == 1
    with pytest.raises(Unknown, match="run nosuch: Kubeflow has no such run") as unknown:
        follow(client, "nosuch", Seen(), poll=0.01)
    assert unknown.value.exit_code == 2


def test_expired_token_ends_the_wait_and_says_so(kubeflow, client, run_id):
    kubeflow.before_get = lambda run: kubeflow.fault("GET runs/", 401)
    with pytest.raises(Refused, match="HTTP 401, the token is missing, wrong or expired"):
        follow(client, run_id, Seen(), poll=0.01)


def task(name, state, start=0, end=0, **more):
    """A task of upstream's client; a moment of 0 has not come, which Kubeflow calls 1970."""
    moments = {"start_time": datetime.fromtimestamp(start, UTC), "end_time": datetime.fromtimestamp(end, UTC)}
    return api.V2beta1PipelineTaskDetail(task_id=name, display_name=name, state=state, **moments, **more)


def run_of(*tasks, **more):
    return api.V2beta1Run(
        run_id="run-7", display_name="key", run_details=api.V2beta1RunDetails(task_details=list(tasks)), **more
    )


def error(message):
    return api.GoogleRpcStatus(message=message)


T = 1_800_000_000


def test_steps_come_in_order_with_their_shards_and_without_the_engines_own():
    run = run_of(
        task("rollout", "SUCCEEDED", T + 10, T + 30),
        task("rollout", "RUNNING", T + 12),
        task("ingest", "SUCCEEDED", T, T + 10),
        task("ingest-driver", "SUCCEEDED", T, T + 1),
        *(
            task(name, "FAILED", T)
            for name in ("root", "key", "executor", "executor(0)", "retry-system-container-impl")
        ),
        *(task(name, "RUNNING", T) for name in ("for-loop-1", "iteration(1:1)", "iteration-item", "exit-handler-1")),
        task("mine", "PENDING"),
    )
    steps = steps_of(run, T + 40)
    assert [(step.name, step.told, step.seconds) for step in steps] == [
        ("ingest", "succeeded", 10),
        ("rollout", "running 1/2", 30),
        ("mine", "pending", 0),
    ]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["SUCCEEDED", "SKIPPED"], "succeeded 1/2"),
        (["SUCCEEDED", "PENDING"], "running 1/2"),
        (["RUNNING", "FAILED"], "failed 0/2"),
        (["SKIPPED"], "skipped"),
        ([None], "pending"),
    ],
)
def test_state_of_a_step_is_that_of_its_shards_together(states, said):
    [step] = steps_of(run_of(*(task("rollout", state, T) for state in states)), T)
    assert step.told == said


def test_failing_step_is_named_the_first_first_with_what_kubeflow_tells():
    run = run_of(
        task("report", "FAILED", T + 20, T + 30, child_tasks=[api.PipelineTaskDetailChildTask(pod_name="pod-9")]),
        task("sft", "FAILED", T, T + 10, error=error("out of memory")),
        task("root", "FAILED", T, T + 40),
        state="FAILED",
    )
    assert [each["step"] for each in failures(run)] == ["sft", "report"]
    with pytest.raises(HardcaseError, match="run run-7 failed at sft: out of memory; report: ") as failed:
        concluded(run)
    assert failed.value.exit_code == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"state_history": [api.V2beta1RuntimeStatus(state="FAILED", error=error("evicted"))]}, "sft: evicted"),
        ({"pod_name": "pod-1"}, "sft: see the log of pod pod-1"),
        ({"child_tasks": [api.PipelineTaskDetailChildTask(pod_name="pod-2")]}, "sft: see the log of pod pod-2"),
        ({}, "sft: see its log in Kubeflow"),
    ],
)
def test_failure_without_an_error_says_where_to_look(more, said):
    with pytest.raises(HardcaseError, match=said):
        concluded(run_of(task("sft", "FAILED", T, T + 1, **more), state="FAILED"))


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_of(state="FAILED", error=error("no quota")), "run-7 failed at no quota"),
        (run_of(state="FAILED"), "run-7 failed at Kubeflow does not say where"),
        (run_of(state="CANCELED"), "run-7 was cancelled"),
        (api.V2beta1Run(run_id="run-7", state="SKIPPED"), "run-7 skipped"),
    ],
)
def test_end_without_a_failing_step_is_said(run, said):
    with pytest.raises(HardcaseError, match=said):
        concluded(run)
