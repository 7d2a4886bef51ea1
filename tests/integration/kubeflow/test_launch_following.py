"""A run that is followed: what is seen of it, how it ends, and what a lost connection does."""

import pytest

from hardcase.cli.launching import translate
from hardcase.cli.watching import Account
from hardcase.kubeflow.address import Address, Gone, Refused, Unreachable
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.launching import terminate
from hardcase.kubeflow.requests import Look
from hardcase.kubeflow.watching import watch
from hardcase.registry.runs import StepRecord, write_record, write_run
from hardcase.store.store import open_store


class Seen:
    """Keeps what is seen of a run until it ends."""

    def __init__(self):
        self.states, self.problems = [], []

    def follow(self, client, run_id, **more):
        return client.run(watch(run_id, client.address, poll=0.01, **more), self.see)["state"]

    def see(self, event):
        if isinstance(event, Look):
            self.states.append(event.run["state"])
        else:
            self.problems.append(event.error)


def connect(kubeflow, namespace="team"):
    return Client(Address(kubeflow.url, timeout=0.5, pause=0.001, namespace=namespace))


@pytest.fixture
def client(kubeflow):
    return connect(kubeflow)


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
    assert seen.follow(client, run_id) == end
    assert seen.states == ["PENDING", "RUNNING", "CANCELING", end]


@pytest.mark.parametrize("fault", ["drop", 503, 500, 429, 0.8])
def test_outage_is_survived_and_said(kubeflow, client, run_id, fault):
    script(kubeflow, "RUNNING", "SUCCEEDED")

    def outage(run):
        kubeflow.fault("GET runs/", *[fault] * 6)
        script(kubeflow, "SUCCEEDED")

    kubeflow.before_get = outage
    seen = Seen()
    assert seen.follow(client, run_id) == "SUCCEEDED"
    assert [type(problem) for problem in seen.problems] == [Unreachable]


def test_silence_beyond_patience_is_an_error(kubeflow, client, run_id):
    script(kubeflow, "RUNNING")
    kubeflow.before_get = lambda run: kubeflow.fault("GET runs/", *[503] * 100)
    with pytest.raises(Unreachable, match="HTTP 503"):
        Seen().follow(client, run_id, patience=0.05)


def test_server_that_never_answered_is_an_error_at_once(kubeflow, client, run_id):
    kubeflow.fault("GET runs/", *[503] * 100)
    seen = Seen()
    with pytest.raises(Unreachable):
        seen.follow(client, run_id)
    assert not seen.problems


def test_deleted_run_is_told_from_one_that_never_was(kubeflow, client, run_id):
    kubeflow.before_get = lambda run: kubeflow.runs.clear()
    with pytest.raises(Gone, match=f"run {run_id} is gone from Kubeflow: someone deleted it") as gone:
        Seen().follow(client, run_id)
    assert translate(gone.value).exit_code == 1
    with pytest.raises(Refused, match="run nosuch: Kubeflow has no such run") as unknown:
        Seen().follow(client, "nosuch")
    assert translate(unknown.value).exit_code == 2


def test_two_404s_of_a_proxy_are_no_deleted_run(kubeflow, client, run_id):
    def misroute(run):
        kubeflow.before_get = lambda run: script(kubeflow, "SUCCEEDED")
        kubeflow.fault("GET runs/", 404, 404)

    kubeflow.before_get = misroute
    seen = Seen()
    assert seen.follow(client, run_id) == "SUCCEEDED"
    assert [problem.status for problem in seen.problems] == [404, 404]


def test_expired_token_ends_the_wait_and_says_so(kubeflow, client, run_id):
    kubeflow.before_get = lambda run: kubeflow.fault("GET runs/", 401)
    with pytest.raises(Refused, match="HTTP 401, the token is missing, wrong or expired"):
        Seen().follow(client, run_id)


STATES = {"ingest": "SUCCEEDED", "validate": "FAILED", "sft": None}


@pytest.fixture
def account(kubeflow, client, run_id, tmp_path):
    """What is known of a run of the committed pipeline, with a store."""
    version = kubeflow.add_pipeline()
    kubeflow.runs[run_id]["pipeline_version_reference"] = {
        name: version[name] for name in ("pipeline_id", "pipeline_version_id")
    }
    return Account(client, open_store(str(tmp_path / "store")))


def conclude(kubeflow, account, run_id):
    return account.conclude(account.client.ask("GET", f"runs/{run_id}"))


def test_failing_step_without_a_record_is_named_once_with_the_command_that_shows_its_log(kubeflow, account, run_id):
    kubeflow.tasks(run_id, **STATES)
    kubeflow.end(run_id, "FAILED")
    told = conclude(kubeflow, account, run_id)
    assert told["error"] == {
        "message": f"run {run_id} failed at validate: its log: kubectl -n team logs -l pipeline/runid={run_id} "
        "--all-containers --prefix",
        "exit_code": 1,
    }
    assert (told["steps"]["validate"], told["steps"]["sft"]) == ("failed", "not reached")


def test_record_of_the_step_tells_why_and_a_refused_input_can_be_mended(kubeflow, account, run_id):
    kubeflow.tasks(run_id, **STATES)
    kubeflow.end(run_id, "FAILED")
    began = "2026-01-01T00:00:00+00:00"
    write_record(account.store, run_id, StepRecord("validate", "running", started=began))
    write_record(account.store, run_id, StepRecord("validate", "refused", "row 7: no label", started=began))
    told = conclude(kubeflow, account, run_id)
    assert told["error"] == {"message": f"run {run_id} failed at validate: row 7: no label", "exit_code": 2}
    assert (told["steps"]["ingest"], told["steps"]["validate"]) == ("cached", "refused")


def test_record_of_the_run_decides_what_the_steps_left_open(kubeflow, account, run_id):
    kubeflow.end(run_id, "FAILED")
    write_run(
        account.store,
        run_id,
        {"status": "failed", "snapshot": None, "error": {"step": "sft", "message": "lost with its node"}},
    )
    assert conclude(kubeflow, account, run_id)["error"]["message"] == f"run {run_id} failed at sft: lost with its node"


def test_terminated_run_is_called_cancelled_where_it_was(kubeflow, client, account, run_id):
    kubeflow.tasks(run_id, ingest="SUCCEEDED", validate="RUNNING")
    client.run(terminate(run_id, client.address))
    kubeflow.tasks(run_id, ingest="SUCCEEDED", validate="FAILED")
    kubeflow.end(run_id, "FAILED")
    told = conclude(kubeflow, account, run_id)
    assert told["error"] == {"message": f"run {run_id} was cancelled at validate", "exit_code": 1}


def test_terminated_run_whose_history_does_not_say_so_is_cancelled_if_it_was_seen(kubeflow, account, run_id):
    run = kubeflow.runs[run_id]
    run["state"] = "CANCELING"
    account.look(account.client.ask("GET", f"runs/{run_id}"))
    kubeflow.end(run_id, "FAILED")
    assert conclude(kubeflow, account, run_id)["error"]["message"] == f"run {run_id} was cancelled"


def test_run_that_failed_before_its_first_step_says_so(kubeflow, account, run_id):
    kubeflow.replay(run_id, "run-error-at-first-pod")
    message = conclude(kubeflow, account, run_id)["error"]["message"]
    assert message.startswith(f"run {run_id} failed before its first step began: its log: kubectl -n team logs")


def test_frozen_details_without_a_store_are_said(kubeflow, account, run_id):
    kubeflow.replay(run_id, "run-8-shards-too-large")
    without = Account(connect(kubeflow, ""))
    told = conclude(kubeflow, without, run_id)
    assert "Kubeflow's details of this run stopped changing; --store URI reads the steps' own records" in told["notes"]
    assert told["steps"]["grpo"] == "unknown"
    assert f"kubectl -n kubeflow logs -l pipeline/runid={run_id}" in told["error"]["message"]


def test_store_that_cannot_be_read_is_said_and_the_run_is_followed(kubeflow, account, run_id):
    kubeflow.tasks(run_id, ingest="SUCCEEDED")
    kubeflow.end(run_id, "SUCCEEDED")
    account.store.put_named(f"notes/{run_id}/ingest.1.json", b"nonsense")
    told = conclude(kubeflow, account, run_id)
    assert told["steps"]["ingest"] == "succeeded"
    assert any("records cannot be read: " in note and "not the record of a step" in note for note in told["notes"])


def test_steps_of_a_version_that_is_gone_are_those_with_records(kubeflow, account, run_id):
    kubeflow.versions.clear()
    write_record(account.store, run_id, StepRecord("ingest", "running", started="2026-01-01T00:00:00+00:00"))
    kubeflow.runs[run_id]["state"] = "RUNNING"
    [step] = account.look(account.client.ask("GET", f"runs/{run_id}"))
    assert (step.name, step.state) == ("ingest", "running")


@pytest.mark.parametrize(
    ("end", "more", "said"),
    [
        ("FAILED", {"error": {"code": 8, "message": "no quota"}}, "failed before its first step began: no quota"),
        ("CANCELED", {}, "was cancelled"),
        ("SKIPPED", {}, "skipped"),
    ],
)
def test_end_without_a_failing_step_is_said(kubeflow, account, run_id, end, more, said):
    kubeflow.end(run_id, end, **more)
    assert f"run {run_id} {said}" in conclude(kubeflow, account, run_id)["error"]["message"]
