"""The stand-in of Kubeflow is no kinder than Kubeflow: it answers recorded requests as a real one did."""

import json
from urllib.parse import urlencode

import pytest
import urllib3
import yaml

from tests.support.kubeflow_recordings import RECORDINGS, recorded, task_details
from tests.support.kubeflow_server import kubeflow_server

NAMES = [path.relative_to(RECORDINGS).with_suffix("").as_posix() for path in sorted(RECORDINGS.rglob("*.json"))]
# Answered only when they are ordered, for the stand-in knows no accounts.
OF_RIGHTS = [name for name in NAMES if "forbidden" in name or "unauth" in name or "namespace-missing" in name]
# Each asked of a server that has what was there when it was recorded.
ASKED = [
    *("healthz", "single-user/healthz", "experiment-create", "experiment-create-again"),
    *(name for name in NAMES if name.startswith("experiments-filter-")),
    *("pipeline-create", "pipeline-create-again", "pipelines-list", "versions-list", "pipeline-missing"),
    *("version-upload", "version-upload-again", "version-upload-pipeline-missing"),
    *("run-create-ok", "run-create-parameter-large", "run-create-parameter-unknown", "run-create-version-missing"),
    *("run-missing", "run-terminate", "run-terminate-ended", "runs-without-namespace", "run-terminated-final"),
    *("recurring-create", "recurring-create-no-account", "recurring-create-same-name", "recurring-create-bad-cron"),
    *("recurring-create-cron-nonsense", "recurring-list-empty", "recurring-missing"),
    *("single-user/runs-list-with-namespace", "single-user/recurringruns-list-with-namespace"),
]
# Made by the server, or by the clock.
OWN = {"created_at", "updated_at", "scheduled_at", "update_time", "experiment_id", "run_id", "recurring_run_id"}
OWN |= {"pipeline_id", "pipeline_version_id", "last_run_created_at"}
PACKAGE = (RECORDINGS / "probe.yaml").read_bytes()


@pytest.fixture
def there(kubeflow):
    """A server with what a recorded request found."""

    def prepare(name):
        kubeflow.multi_user = not name.startswith("single-user")
        created = ("version-upload", "experiment-create", "pipeline-create")
        version = recorded("version-upload")["body"]
        kubeflow.pipelines[version["pipeline_id"]] = recorded("pipeline-upload")["body"]
        if name not in created:
            kubeflow.versions[version["pipeline_version_id"]] = version
        for listing in ("experiments-filter-plus-escaped", "experiments-filter-percent-escaped"):
            [experiment] = recorded(listing)["body"]["experiments"]
            kubeflow.experiments[experiment["experiment_id"]] = experiment
        if name not in created:
            kubeflow.pipelines["there"] = recorded("pipeline-create")["body"]
            experiment = recorded("experiment-create")["body"]
            kubeflow.experiments[experiment["experiment_id"]] = experiment
        run = recorded("run-terminated-final" if name != "run-terminate" else "run-terminated-state-running")["body"]
        kubeflow.runs[run["run_id"]] = run
        if name.startswith("single-user"):
            kubeflow.runs.clear()
        return kubeflow

    return prepare


def ask(url, request):
    """Send a recorded request."""
    path = url + request["path"] + (f"?{urlencode(request['query'])}" if request["query"] else "")
    body = request["body"] or {}
    if "uploadfile" in body:
        answer = urllib3.request("POST", path, fields={"uploadfile": ("probe.yaml", PACKAGE)}, retries=False)
    elif request["method"] == "POST":
        text = json.dumps(body)
        if "times the letter x" in text:
            text = text.replace("<2000000 times the letter x>", "x" * 2_000_000)
        answer = urllib3.request("POST", path, body=text, retries=False)
    else:
        answer = urllib3.request(request["method"], path, retries=False)
    return answer.status, answer.json()


def told(body):
    """What is not the server's own."""
    if isinstance(body, dict):
        return {key: told(value) for key, value in body.items() if key not in OWN}
    return [told(each) for each in body] if isinstance(body, list) else body


@pytest.mark.parametrize("name", ASKED)
def test_recorded_request_is_answered_as_it_was(there, name):
    kubeflow = there(name)
    content = json.loads((RECORDINGS / f"{name}.json").read_text())
    status, body = ask(kubeflow.url, content["request"])
    assert status == content["response"]["status"]
    if status != 200:
        assert body == content["response"]["body"]
    elif name not in ("recurring-create-bad-cron",):
        assert told(body) == told(content["response"]["body"])


@pytest.mark.parametrize("name", OF_RIGHTS)
def test_refusal_for_want_of_rights_is_the_recorded_one(kubeflow, name):
    kubeflow.fault("GET runs", name)
    answer = urllib3.request("GET", f"{kubeflow.url}/apis/v2beta1/runs", retries=False)
    assert (answer.status, answer.json()) == (recorded(name)["status"], recorded(name)["body"])


@pytest.mark.parametrize("package", [b"not: [a pipeline", b"a: [\n---\nb: 1"])
def test_file_that_is_no_yaml_is_never_answered(there, package):
    kubeflow = there("healthz")
    place = f"{kubeflow.url}/apis/v2beta1/pipelines/upload_version?pipelineid={next(iter(kubeflow.pipelines))}&name=x"
    with pytest.raises(urllib3.exceptions.ProtocolError):
        urllib3.request("POST", place, fields={"uploadfile": ("x.yaml", package)}, retries=False)
    assert kubeflow.hung == [package]


@pytest.mark.parametrize("package", [b"words", b"a: 1", b""])
def test_file_that_is_no_pipeline_is_a_400(there, package):
    kubeflow = there("healthz")
    place = f"{kubeflow.url}/apis/v2beta1/pipelines/upload_version?pipelineid={next(iter(kubeflow.pipelines))}&name=x"
    answer = urllib3.request("POST", place, fields={"uploadfile": ("x.yaml", package)}, retries=False)
    assert (answer.status, answer.json()["error_message"]) == (400, "unknown template format")


def test_settings_for_kubernetes_are_beside_the_spec_of_a_version():
    with kubeflow_server() as kubeflow:
        spec = kubeflow.add_pipeline()["pipeline_spec"]
    assert spec.keys() == {"pipeline_spec", "platform_spec"}
    assert spec["pipeline_spec"]["pipelineInfo"]["name"] == "hardcase-retraining"


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("run-fail-state-01-running", {"work": "FAILED", "tell": "PENDING"}),
        ("run-ok-state-02-succeeded", {"work": "SUCCEEDED", "tell": "SUCCEEDED"}),
        ("run-fail-state-02-failed", {"work": "FAILED", "tell": "SUCCEEDED"}),
    ],
)
def test_details_of_the_stand_in_have_the_nodes_of_a_real_run(name, states):
    shown = recorded(name)["body"]["run_details"]["task_details"]
    # `onExit` is the exit handler's own layer; the stand-in's steps are all in one.
    real = sorted(node.get("display_name", "") for node in shown if ".onExit" not in node.get("display_name", ""))
    made = sorted(node.get("display_name", "") for node in task_details(states, real_workflow(shown)))
    assert [node for node in made if node] == [node for node in real if node]
    steps = {node.get("display_name"): node.get("state") for node in shown}
    ours = {node.get("display_name"): node.get("state") for node in task_details(states, real_workflow(shown))}
    assert {name: ours[name] for name in ("work", "tell", "work(0)")} == {
        name: steps[name] for name in ("work", "tell", "work(0)")
    }


def real_workflow(shown):
    """Its name."""
    [name] = {each[:11] for node in shown if (each := node.get("display_name", "")).startswith("probe-")}
    return name


def test_probe_is_the_pipeline_that_was_recorded():
    assert next(yaml.safe_load_all(PACKAGE)) == recorded("version-upload")["body"]["pipeline_spec"]
