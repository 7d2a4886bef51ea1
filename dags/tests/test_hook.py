"""The hook against a real HTTP server: what fails clearly, what is tried again, and that one key is one run."""

import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_plus

import httpx
import pytest
from hardcase_provider.hooks import CONNECTION_ATTEMPTS, KubeflowHook, url_of

from dags.tests.conftest import RECORDINGS, recorded
from hardcase.kubeflow.address import Address, KubeflowError, Refused, Unreachable, find_address
from hardcase.kubeflow.launching import check_parameters, filter_by_name, list_inputs
from hardcase.kubeflow.requests import ATTEMPTS, Request
from hardcase.kubeflow.runs import list_steps


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("https://kubeflow.example/pipeline", 8443, "https://kubeflow.example:8443/pipeline"),
        ("kubeflow.example/pipeline/", 8443, "https://kubeflow.example:8443/pipeline"),
        ("kubeflow.example", 8443, "https://kubeflow.example:8443"),
        ("http://[::1]/a", 80, "http://[::1]:80/a"),
        ("https://kubeflow.example/pipeline", None, "https://kubeflow.example/pipeline"),
    ],
)
def test_the_port_of_a_connection_comes_before_the_path(host: str, port: int | None, url: str) -> None:
    assert url_of(SimpleNamespace(host=host, port=port, schema="")) == url


@pytest.mark.parametrize(
    ("status", "word"), [(400, "at fault"), (401, "token"), (403, "role"), (404, "no such"), (409, "already")]
)
def test_refusal_is_said_once_with_its_remedy(kubeflow: Any, hook: KubeflowHook, status: int, word: str) -> None:
    kubeflow.fault("GET runs/x", status)
    with pytest.raises(Refused, match=rf"GET runs/x: HTTP {status}, .*{word}.*ordered {status}"):
        hook.client.ask("GET", "runs/x")
    assert kubeflow.made("GET runs/x") == 1


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "drop", 0.8])
def test_passing_fault_is_tried_again(kubeflow: Any, hook: KubeflowHook, fault: Any) -> None:
    kubeflow.fault("GET healthz", fault, fault)
    assert hook.test_connection() == (True, "Kubeflow answers")
    assert kubeflow.made("GET healthz") == 3


@pytest.mark.parametrize(
    ("fault", "word"), [(500, "HTTP 500"), ("drop", "the connection broke"), (0.8, "no answer in time")]
)
def test_lasting_fault_is_one_clear_error(kubeflow: Any, hook: KubeflowHook, fault: Any, word: str) -> None:
    kubeflow.fault("GET runs/x", *[fault] * ATTEMPTS)
    with pytest.raises(Unreachable, match=rf"GET runs/x: .*{word}.*tried {ATTEMPTS} times"):
        hook.client.ask("GET", "runs/x")


def test_nobody_there_is_one_clear_error() -> None:
    hook = KubeflowHook(address=Address("http://127.0.0.1:9", pause=0.001))
    with pytest.raises(Unreachable, match="nothing answers there"):
        hook.client.ask("GET", "runs/x")
    done, words = hook.test_connection()
    assert (done, "see the connection's host" in words) == (False, True)


def test_refused_connection_is_tried_for_minutes() -> None:
    waited, attempt, minutes = 0.0, 0, Address("https://kubeflow", connection_attempts=CONNECTION_ATTEMPTS)
    with pytest.raises(Unreachable):
        while True:
            waited += Request("POST", "runs").judge(httpx.ConnectError("refused"), attempt, minutes)  # type: ignore[operator]
            attempt += 1
    assert 120 < waited < 600


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run-create-version-missing", "HTTP 500, .*PipelineVersion 0{8}-.* not found"),
        ("run-create-parameter-large", "HTTP 500, .*request is too large"),
        ("version-upload-forbidden", "HTTP 400, the token's account may not upload pipelines"),
        ("pipeline-upload-forbidden", "HTTP 400, the token's account may not upload pipelines"),
        ("run-create-forbidden", "HTTP 403, the token's account may not do this.* namespace hardcase"),
        ("unauthenticated-garbage-token", "HTTP 401, the token is missing, wrong or expired"),
        ("run-create-parameter-type", "HTTP 400, .*input parameter mode requires type string"),
        ("run-missing", "HTTP 404, there is no such thing.* not found"),
        ("pipeline-create-again", "HTTP 409, it is there already"),
    ],
)
def test_answer_that_stays_the_same_is_not_asked_for_again(name: str, words: str) -> None:
    answer = recorded(name)
    with pytest.raises(Refused, match=words):
        Request("POST", "runs").judge(
            httpx.Response(answer["status"], json=answer["body"]), 0, Address("https://kubeflow")
        )


@pytest.mark.parametrize("name", ["a+b", "50%", "50%25", "two words", 'a "name"', "ä"])
def test_listing_finds_any_name(name: str) -> None:
    [predicate] = json.loads(unquote_plus(filter_by_name(name)))["predicates"]
    assert predicate["stringValue"] == name


def test_recorded_listings_show_that_a_filter_is_unescaped_once_more() -> None:
    found = {
        name: [each["display_name"] for each in recorded(name)["body"].get("experiments", [])]
        for name in ("experiments-filter-plus", "experiments-filter-plus-escaped")
    }
    assert found == {"experiments-filter-plus": [], "experiments-filter-plus-escaped": ["a+b"]}
    assert recorded("experiments-filter-percent")["status"] == 400


def test_login_page_instead_of_the_api_is_told(kubeflow: Any, hook: KubeflowHook) -> None:
    kubeflow.fault("GET runs/x", 302)
    with pytest.raises(Refused, match="a login stands before it"):
        hook.client.ask("GET", "runs/x")


def test_token_of_the_file_is_read_at_each_request(kubeflow: Any, tmp_path: Path) -> None:
    path = tmp_path / "token"
    hook = KubeflowHook(address=find_address(kubeflow.url, token_file=str(path)))
    for token in ("first", "second"):
        path.write_text(f"{token}\n", encoding="utf-8")
        hook.test_connection()
    assert kubeflow.tokens == ["Bearer first", "Bearer second"]
    path.unlink()
    with pytest.raises(Refused, match="the token cannot be read from there"):
        hook.client.ask("GET", "runs/x")


def test_token_is_in_no_message(address: Address) -> None:
    assert "sesame" not in repr(address)


def test_launching_twice_starts_one_run(kubeflow: Any, hook: KubeflowHook) -> None:
    version = kubeflow.add_pipeline()
    first, started = hook.launch("key", version, {"profile": "tiny"})
    second, again = hook.launch("key", version, {"profile": "tiny"})
    assert (started, again) == (True, False)
    assert first["run_id"] == second["run_id"]
    assert len(kubeflow.runs) == 1
    assert kubeflow.runs["run-0"]["runtime_config"] == {"parameters": {"profile": "tiny"}}


@pytest.mark.parametrize("fault", ["lose", "drop", 429, 500, 503, 409, 0.8])
def test_launch_whose_answer_is_lost_starts_one_run(kubeflow: Any, hook: KubeflowHook, fault: Any) -> None:
    version = kubeflow.add_pipeline()
    kubeflow.fault("POST runs$", fault)
    run, _ = hook.launch("key", version, {})
    assert list(kubeflow.runs) == [run["run_id"]]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "CANCELING"])
def test_launch_after_a_failure_starts_another(kubeflow: Any, hook: KubeflowHook, state: str) -> None:
    version = kubeflow.add_pipeline()
    hook.launch("key", version, {})
    kubeflow.runs["run-0"]["state"] = state
    assert hook.launch("key", version, {})[0]["run_id"] == "run-1"


def test_run_that_is_being_stopped_is_not_found(kubeflow: Any, hook: KubeflowHook) -> None:
    version = kubeflow.add_pipeline()
    hook.launch("key", version, {})
    stopping = recorded("run-terminated-state-canceling")["body"]
    for state in ("CANCELING", "RUNNING"):  # a report of the workflow may overwrite the state, but not its history
        kubeflow.runs["run-0"] |= {"state": state, "state_history": stopping["state_history"]}
        assert hook.launch("key", version, {})[0]["run_id"] == "run-1"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "PAUSED", "SUCCEEDED"])
def test_launch_follows_what_goes_on_or_succeeded(kubeflow: Any, hook: KubeflowHook, state: str) -> None:
    version = kubeflow.add_pipeline()
    for number in range(5):
        hook.launch(f"other-{number}", version, {})
    hook.launch("key", version, {})
    kubeflow.runs["run-5"]["state"] = state
    assert hook.launch("key", version, {}) == (kubeflow.runs["run-5"], False)


def test_two_launches_at_one_moment_leave_the_elder(kubeflow: Any, hook: KubeflowHook) -> None:
    version = kubeflow.add_pipeline()
    kubeflow.before_create = lambda: kubeflow.create_run({"display_name": "key"})
    run, started = hook.launch("key", version, {})
    assert (run["run_id"], started) == ("run-0", False)
    assert {name: each["state"] for name, each in kubeflow.runs.items()} == {"run-0": "PENDING", "run-1": "CANCELING"}


def test_sixteen_launches_at_once_leave_one_run(kubeflow: Any, hook: KubeflowHook) -> None:
    version = kubeflow.add_pipeline()
    threads = [threading.Thread(target=hook.launch, args=("key", version, {})) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run["run_id"] for run in kubeflow.runs.values() if run["state"] == "PENDING"] == ["run-0"]


def test_package_is_uploaded_when_it_changed(kubeflow: Any, hook: KubeflowHook, tmp_path: Path) -> None:
    kubeflow.fault("POST pipelines", "lose", "lose")
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_bytes((RECORDINGS / "probe.yaml").read_bytes())
    other.write_bytes(one.read_bytes() + b"# changed\n")
    first = hook.version("retraining", str(one))
    assert hook.version("retraining", str(one)) == first
    assert hook.version("retraining", str(other)) != first
    assert (len(kubeflow.pipelines), len(kubeflow.versions)) == (1, 2)
    assert hook.version("retraining")["display_name"].startswith("retraining-")
    assert list(list_steps(first["pipeline_spec"])) == ["work", "tell"]


@pytest.mark.parametrize("content", [b"not: [a pipeline", b"\x00\xff", b"- a\n- list\n", b"", b"a: mapping\n---\n[\n"])
def test_file_that_is_no_pipeline_is_not_sent(
    kubeflow: Any, hook: KubeflowHook, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"pipeline.yaml: not (YAML|a compiled pipeline).*`hardcase compile`"):
        hook.version("retraining", str(path))
    assert not kubeflow.made("POST")


def test_version_that_is_gone_is_said_at_once(kubeflow: Any, hook: KubeflowHook) -> None:
    version = kubeflow.add_pipeline()
    kubeflow.fault("POST runs$", "run-create-version-missing")
    with pytest.raises(Refused, match="not found"):
        hook.launch("key", version, {})
    assert kubeflow.made("POST runs$") == 1


def test_experiment_is_made_once_and_its_runs_are_in_it(kubeflow: Any) -> None:
    kubeflow.multi_user = True
    hook = KubeflowHook(address=Address(kubeflow.url, namespace="team"), experiment="weekly")
    version = kubeflow.add_pipeline()
    for key in ("a", "b"):
        hook.launch(key, version, {})
    assert [each["namespace"] for each in kubeflow.experiments.values()] == ["team"]
    assert {run["experiment_id"] for run in kubeflow.runs.values()} == {"experiment-0"}


def test_parameter_the_pipeline_does_not_take_is_said_before_the_launch(kubeflow: Any, hook: KubeflowHook) -> None:
    with pytest.raises(KubeflowError, match=r"it takes no sead\. It takes profile \(one of .*; seed \(a whole number"):
        hook.launch("key", kubeflow.add_pipeline(), {"sead": 1})
    assert not kubeflow.runs
    needs = {"pipeline_spec": {"root": {"inputDefinitions": {"parameters": {"store": {"parameterType": "STRING"}}}}}}
    with pytest.raises(KubeflowError, match="it needs store"):
        check_parameters("pipeline", list_inputs({"pipeline_spec": needs}), {})


@pytest.mark.parametrize(
    ("pipeline", "given", "problem"),
    [
        ("retraining", {"profile": "huge"}, 'profile is "huge", not one of internvl3-2b, internvl3-2b-lora, smoke'),
        ("retraining", {"seed": "7"}, 'seed is "7", not a whole number'),
        ("retraining", {"seed": True}, "seed is true, not a whole number"),
        ("retraining", {"seed": 7.5}, "seed is 7.5, not a whole number"),
        ("retraining", {"source": None}, "source is null, not text"),
        ("retraining", {"settings": "sft.steps=1"}, 'settings is "sft.steps=1", not an object'),
        ("evaluation", {"seed": 1}, "it takes no seed. It takes model (text"),
        ("evaluation", {"model": 3}, "model is 3, not text"),
    ],
)
def test_value_the_compiled_pipeline_does_not_take_is_said_before_the_launch(
    kubeflow: Any, hook: KubeflowHook, pipeline: str, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(KubeflowError, match=re.escape(problem)):
        hook.launch("key", kubeflow.add_pipeline(f"hardcase-{pipeline}"), given)
    assert not kubeflow.runs


def test_values_the_compiled_pipeline_takes_are_launched(kubeflow: Any, hook: KubeflowHook) -> None:
    given = {"profile": "smoke", "source": "s3://bucket/march", "seed": 7, "settings": {"sft.steps": 2}}
    hook.launch("key", kubeflow.add_pipeline(), given)
    assert kubeflow.runs["run-0"]["runtime_config"]["parameters"] == given
    assert hook.launch("none", kubeflow.add_pipeline(), {})[1], "every parameter has a default"


def test_stopping_what_is_gone_is_no_error(kubeflow: Any, hook: KubeflowHook) -> None:
    hook.terminate("never")
    kubeflow.fault("POST runs/never:terminate", 403)
    with pytest.raises(Refused):
        hook.terminate("never")


def test_upstream_s_own_client_reads_the_server(kubeflow: Any, hook: KubeflowHook) -> None:
    import kfp_server_api as api

    hook.launch("key", kubeflow.add_pipeline(), {"profile": "tiny"})
    client = api.ApiClient(api.Configuration(host=kubeflow.url))
    run = api.RunServiceApi(client).run_service_get_run("run-0")
    assert (run.display_name, run.state) == ("key", "PENDING")
    assert run.pipeline_version_reference.pipeline_version_id == "version-0"
    listed = api.RunServiceApi(client).run_service_list_runs(page_size=100)
    assert [each.run_id for each in listed.runs] == ["run-0"]
    assert api.PipelineServiceApi(client).pipeline_service_list_pipelines().pipelines[0].pipeline_id == "pipeline-0"
