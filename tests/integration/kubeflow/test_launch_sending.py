"""The client against a real HTTP server: one key is one run, one name one schedule, and each fault one clear error."""

import threading
from dataclasses import replace

import kfp
import pytest

from hardcase.cli.cron import parse_cron
from hardcase.cli.launching import translate
from hardcase.cli.package import load_package
from hardcase.errors import InputError
from hardcase.kubeflow.address import Absent, Address, Refused, Unreachable
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.launching import Order, launch_package, terminate
from hardcase.kubeflow.requests import ATTEMPTS

# A report of the workflow may overwrite the state of a run that is being stopped, but not its history.
STOPPING = {"state": "RUNNING", "state_history": [{"state": "RUNNING"}, {"state": "CANCELING"}]}


@pytest.fixture
def order():
    return Order(
        parameters={"profile": "smoke", "seed": 3},
        key="retraining-1",
        experiment="nightly",
        service_account="pipeline-runner",
    )


@pytest.fixture
def package(little):
    return load_package(str(little))


def connect(kubeflow, namespace="hardcase", timeout=0.5):
    return Client(Address(kubeflow.url, token=lambda: "sesame", timeout=timeout, pause=0.01, namespace=namespace))


@pytest.fixture
def launch(kubeflow, package):
    """Launch an order there."""
    clients = {}

    def call(order, package=package, namespace="hardcase"):
        client = clients.setdefault(namespace, connect(kubeflow, namespace))
        flow = launch_package(order, package.name, package.content, package.description, client.address)
        return client.run(flow)

    return call


def test_run_has_what_was_ordered(kubeflow, launch, order, little, package):
    done = launch(order)
    assert (done.uploaded, done.created, done.thing["run_id"]) == (True, True, "run-0")
    [run] = kubeflow.runs.values()
    assert run["display_name"] == "retraining-1"
    assert run["runtime_config"] == {"parameters": {"profile": "smoke", "seed": 3}}
    assert run["pipeline_version_reference"] == {"pipeline_id": "pipeline-0", "pipeline_version_id": "version-0"}
    assert run["service_account"] == "pipeline-runner"
    assert kubeflow.experiments[run["experiment_id"]]["display_name"] == "nightly"
    assert kubeflow.versions["version-0"]["display_name"] == package.version
    assert kubeflow.uploaded == [little.read_bytes()]
    assert set(kubeflow.tokens) == {"Bearer sesame"}


def test_same_pipeline_is_uploaded_once_and_a_changed_one_again(kubeflow, launch, order, package):
    launch(order)
    assert not launch(replace(order, key="another")).uploaded
    changed = replace(package, content=package.content + b"# changed\n")
    assert launch(replace(order, key="third"), changed).uploaded
    assert (len(kubeflow.pipelines), len(kubeflow.versions), len(kubeflow.runs)) == (1, 2, 3)


@pytest.mark.parametrize("key", ["a+b", "50%", "50%25", "two words", 'say "a"', "ä"])
def test_any_key_finds_its_run_its_experiment_and_its_schedule(kubeflow, launch, order, key):
    named = replace(order, key=key, experiment=key)
    assert [launch(named).created for _ in range(2)] == [True, False]
    weekly = replace(named, cron="0 0 3 * * 1")
    assert [launch(weekly).created for _ in range(2)] == [True, False]
    assert [len(each) for each in (kubeflow.runs, kubeflow.experiments, kubeflow.recurring_runs)] == [1, 1, 1]


def test_form_without_descriptions_is_explained_by_pipeline_and_version(kubeflow, launch, order, package):
    package = replace(package, description="Retrain.\n\nseed: Of everything that is drawn.")
    launch(order, package)
    assert kubeflow.pipelines["pipeline-0"]["description"] == package.description
    assert kubeflow.versions["version-0"]["description"] == package.description


def test_committed_pipeline_says_what_its_parameters_mean():
    package = load_package("retraining")
    assert all(f"\n- **{name}**: " in package.description for name in package.inputs)


def test_installation_for_one_user_refuses_a_namespace_that_it_would_ignore(kubeflow, launch, order):
    kubeflow.multi_user = False
    with pytest.raises(Refused, match=r"Kubeflow at .* single user and ignores the namespace 'hardcase'"):
        launch(order)
    assert kubeflow.requests == ["GET healthz"]
    assert launch(order, namespace="").created
    assert not any("namespace" in body for _, body in kubeflow.bodies)


def test_installation_for_several_users_needs_a_namespace(kubeflow, launch, order):
    with pytest.raises(Refused, match="several users; name a namespace"):
        launch(order, namespace="")
    assert kubeflow.requests == ["GET healthz"]


def test_run_that_ended_is_stopped_without_an_error(kubeflow, launch, order):
    launch(order)
    kubeflow.end("run-0", "SUCCEEDED")
    client = connect(kubeflow)
    assert client.run(terminate("run-0", client.address)) is False
    assert kubeflow.runs["run-0"]["state"] == "SUCCEEDED"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "PAUSED", "SUCCEEDED"])
def test_same_key_finds_the_run_that_goes_on_or_succeeded(kubeflow, launch, order, state):
    launch(order)
    kubeflow.runs["run-0"]["state"] = state
    again = launch(order)
    assert (again.thing["run_id"], again.created, len(kubeflow.runs)) == ("run-0", False, 1)


@pytest.mark.parametrize("more", [{"state": "FAILED"}, {"state": "CANCELED"}, {"storage_state": "ARCHIVED"}, STOPPING])
def test_same_key_after_a_failure_starts_another(kubeflow, launch, order, more):
    launch(order)
    kubeflow.runs["run-0"] |= more
    assert launch(order).thing["run_id"] == "run-1"


def test_run_that_airflow_started_under_the_key_is_found(kubeflow, launch, order):
    for _ in range(5):  # more than a page
        kubeflow.create_run({"display_name": order.key})
    for run in kubeflow.runs.values():
        run["state"] = "FAILED"
    kubeflow.create_run({"display_name": order.key, "experiment_id": "of another"})
    assert launch(order).thing["run_id"] == "run-5"


@pytest.mark.parametrize("what", ["pipelines$", "pipelines/upload_version", "experiments", "runs"])
@pytest.mark.parametrize("fault", ["lose", "drop", 409, 429, 500, 503, 0.8])
def test_passing_fault_of_a_post_leaves_one_of_each(kubeflow, launch, order, what, fault):
    kubeflow.fault(f"POST {what}", fault)
    launch(order)
    things = kubeflow.pipelines, kubeflow.versions, kubeflow.experiments
    assert [len(each) for each in things] == [1, 1, 1]
    going = [run for run in kubeflow.runs.values() if run["state"] != "CANCELING"]
    assert [run["run_id"] for run in going] == ["run-0"]


def test_two_at_the_same_moment_leave_the_elder_run(kubeflow, launch, order):
    kubeflow.before_create = lambda: kubeflow.create_run({"display_name": order.key})
    done = launch(order)
    assert (done.thing["run_id"], done.created) == ("run-0", False)
    assert {name: each["state"] for name, each in kubeflow.runs.items()} == {"run-0": "PENDING", "run-1": "CANCELING"}


def test_many_at_once_leave_one_run(kubeflow, launch, order, package):
    launch(replace(order, key="makes the version"))
    barrier, seen = threading.Barrier(4), []

    def launch_too():
        client = connect(kubeflow, timeout=5)
        flow = launch_package(order, package.name, package.content, package.description, client.address)
        barrier.wait()
        seen.append(client.run(flow).thing["run_id"])

    threads = [threading.Thread(target=launch_too) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    going = [run["run_id"] for run in kubeflow.runs.values() if run["display_name"] == order.key]
    alive = [name for name in going if kubeflow.runs[name]["state"] == "PENDING"]
    assert alive == [going[0]]
    assert seen == alive * 4


def test_what_is_launched_is_what_upstreams_own_client_sees(kubeflow, launch, order, monkeypatch, tmp_path):
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    run = launch(order).thing
    schedule = launch(replace(order, key="weekly", cron="0 0 3 * * 1")).thing["recurring_run_id"]
    upstream = kfp.Client(host=kubeflow.url)
    assert upstream.get_pipeline_id("hardcase-little") == run["pipeline_version_reference"]["pipeline_id"]
    assert upstream.get_run(run["run_id"]).runtime_config.parameters == order.parameters
    assert upstream.get_recurring_run(schedule).trigger.cron_schedule.cron == "0 0 3 * * 1"


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "drop", 0.8])
def test_passing_fault_of_a_look_is_tried_again(kubeflow, fault):
    kubeflow.create_run({"display_name": "x"})
    kubeflow.fault("GET runs/run-0", fault, fault)
    assert connect(kubeflow).ask("GET", "runs/run-0")["run_id"] == "run-0"
    assert kubeflow.made("GET runs/run-0") == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (429, "HTTP 429"),
        (500, "HTTP 500, ordered 500"),
        ("drop", "connection broke"),
        (0.8, "no answer in time"),
    ],
)
def test_lasting_fault_is_one_line_and_no_fault_of_the_user(kubeflow, fault, said):
    kubeflow.fault("GET runs/x", *[fault] * ATTEMPTS)
    with pytest.raises(Unreachable, match=f"Kubeflow, GET runs/x: .*{said}") as error:
        connect(kubeflow).ask("GET", "runs/x")
    assert translate(error.value).exit_code == 1
    assert "\n" not in str(error.value)
    assert kubeflow.made("GET runs/x") == ATTEMPTS


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (400, "HTTP 400, the request is at fault: ordered 400"),
        (401, "HTTP 401, the token is missing, wrong or expired: ordered 401"),
        (403, "HTTP 403, the token's account may not do this; see its role"),
        (404, "HTTP 404, there is no such thing"),
        ("login", "the answer is no JSON; is http.* the API, or does a login stand"),
        ("redirect", "HTTP 302, a redirect: a login stands before it"),
    ],
)
def test_refusal_is_said_once_and_the_user_can_mend_it(kubeflow, launch, order, fault, said):
    kubeflow.fault("GET pipelines", fault)
    with pytest.raises(Refused, match=said) as error:
        launch(order)
    assert translate(error.value).exit_code == 2
    assert "\n" not in str(error.value)
    assert "sesame" not in str(error.value)
    assert kubeflow.requests == ["GET healthz", "GET pipelines"]


@pytest.mark.parametrize(
    ("request_", "recording", "said"),
    [
        (
            "POST pipelines/upload_version",
            "version-upload-forbidden",
            "HTTP 400, the token's account may not upload pipelines; bind its role to it",
        ),
        ("POST runs", "run-create-version-missing", "HTTP 500, something that the request names is gone from Kubeflow"),
        ("POST runs", "run-create-parameter-large", "HTTP 500, the parameters are too large for Kubernetes' store"),
        ("POST runs", "run-create-parameter-type", "HTTP 400, .*mode requires type string"),
        ("POST runs", "run-create-forbidden", "HTTP 403, the token's account may not do this; see its role"),
        ("POST experiments", "experiment-create-forbidden", "HTTP 403, .*Resource:experiments"),
        ("GET pipelines", "unauthenticated-garbage-token", "HTTP 401, the token is missing, wrong or expired"),
    ],
)
def test_recorded_refusal_is_explained_and_not_asked_again(kubeflow, launch, order, request_, recording, said):
    kubeflow.fault(f"{request_}$", *[recording] * ATTEMPTS)
    with pytest.raises(Refused, match=said) as error:
        launch(order)
    assert "\n" not in str(error.value)
    assert kubeflow.made(f"{request_}$") == 1


def test_version_that_goes_away_between_upload_and_run_is_explained(kubeflow, launch, order):
    launch(order)
    kubeflow.before_create = kubeflow.versions.clear
    with pytest.raises(Refused, match=r"gone from Kubeflow; launch again: .*PipelineVersion version-0 not found"):
        launch(replace(order, key="second"))
    assert kubeflow.made("POST runs") == 2


def test_parameters_beyond_what_kubernetes_stores_are_explained(kubeflow, launch, order):
    with pytest.raises(Refused, match="too large for Kubernetes' store"):
        launch(replace(order, parameters={"source": "x" * 2_000_000}))
    assert (kubeflow.made("POST runs"), kubeflow.runs) == (1, {})


def test_conflict_that_lasts_is_an_error_and_not_a_loop(kubeflow, launch, order):
    kubeflow.fault("POST experiments", *[409] * ATTEMPTS)
    with pytest.raises(Unreachable, match="HTTP 409, it is there already"):
        launch(order)
    assert not kubeflow.runs


@pytest.mark.parametrize(
    ("url", "said"), [("http://127.0.0.1:1", "nothing answers there"), ("http://no.such.invalid", "no such host")]
)
def test_host_where_nobody_is_can_be_mended(url, said):
    with pytest.raises(Absent, match=said) as error:
        Client(Address(url, timeout=5, pause=0.01)).ask("GET", "runs/x")
    assert translate(error.value).exit_code == 2
    assert str(translate(error.value)).endswith("fix --host")


def test_schedule_is_kept_under_its_name(kubeflow, launch, order):
    weekly = replace(order, key="weekly", cron="0 0 3 * * 1")
    first = launch(weekly)
    [kept] = kubeflow.recurring_runs.values()
    assert (first.created, kubeflow.runs) == (True, {})
    assert kept["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (kept["mode"], kept["max_concurrency"], kept["no_catchup"]) == ("ENABLE", "1", True)
    assert kept["runtime_config"] == {"parameters": {"profile": "smoke", "seed": 3}}
    again = launch(weekly)
    assert (again.created, again.thing["recurring_run_id"], kubeflow.made("POST recurringruns$")) == (
        False,
        first.thing["recurring_run_id"],
        1,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "0 0 4 * * 1"},
        {"parameters": {"profile": "tiny"}},
        {"concurrency": 2},
        {"service_account": "other"},
        {"experiment": "other"},
    ],
)
def test_changed_schedule_takes_the_place_of_the_old_one(kubeflow, launch, order, change):
    weekly = replace(order, key="weekly", cron="0 0 3 * * 1")
    launch(replace(weekly, key="another"))
    launch(weekly)
    done = launch(replace(weekly, **change))
    assert done.created
    assert sorted(each["display_name"] for each in kubeflow.recurring_runs.values()) == ["another", "weekly"]
    assert kubeflow.requests[-2:] == ["POST recurringruns", "DELETE recurringruns/recurring-run-1"]


@pytest.mark.parametrize("several", [True, False])
def test_schedule_without_a_service_account_is_kept(kubeflow, launch, order, several):
    kubeflow.multi_user = several
    weekly = replace(order, key="weekly", cron="0 0 3 * * 1", service_account="")
    namespace = "team" if several else ""
    first, again = launch(weekly, namespace=namespace), launch(weekly, namespace=namespace)
    [kept] = kubeflow.recurring_runs.values()
    assert kept["service_account"] == ("default-editor" if several else "pipeline-runner")
    assert (first.created, again.created, again.thing["recurring_run_id"]) == (
        True,
        False,
        first.thing["recurring_run_id"],
    )
    assert launch(replace(weekly, service_account="other"), namespace=namespace).created


def test_schedule_that_was_switched_off_is_switched_on(kubeflow, launch, order):
    weekly = replace(order, key="weekly", cron="0 0 3 * * 1")
    name = launch(weekly).thing["recurring_run_id"]
    kubeflow.recurring_runs[name]["status"] = "DISABLED"
    assert launch(weekly).created
    assert kubeflow.recurring_runs[name]["status"] == "ENABLED"


def test_lost_answer_leaves_one_schedule(kubeflow, launch, order):
    kubeflow.fault("POST recurringruns", "lose")
    launch(replace(order, key="weekly", cron="0 0 3 * * 1"))
    assert len(kubeflow.recurring_runs) == 1


@pytest.mark.parametrize(
    ("text", "cron"), [("0 3 * * 1", "0 0 3 * * 1"), ("0 0 9 ? * MON-FRI", "0 0 9 ? * MON-FRI"), ("*/5 * * * *",) * 2]
)
def test_cron_has_seconds_for_kubeflow(text, cron):
    assert parse_cron(text) == (cron if len(cron.split()) == 6 else f"0 {cron}")


@pytest.mark.parametrize("text", ["weekly", "0 3 * *", "0 3 * * 1; rm", "@daily", "0 0 0 3 * * 1"])
def test_schedule_that_is_no_cron_is_refused(text):
    with pytest.raises(InputError, match="--schedule"):
        parse_cron(text)
