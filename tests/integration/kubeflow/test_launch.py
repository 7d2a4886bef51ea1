"""`hardcase launch` as a user runs it, against a server of Kubeflow's API."""

import json
import signal
import time

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from hardcase.cli.main import app
from hardcase.cli.package import load_package
from hardcase.registry.runs import StepRecord, write_record, write_run
from hardcase.registry.tracking import show_run
from hardcase.report.summary import EXPERIMENT
from hardcase.store.store import open_store

LIGHT, TRAIN = "hardcase/python-light:0.1.0", "hardcase/python-train:0.1.0"
PINNED = "registry.example/light@sha256:" + "a" * 64
ENVIRONMENT = ("HARDCASE_KFP_HOST", "HARDCASE_KFP_TOKEN", "HARDCASE_KFP_TOKEN_FILE", "HARDCASE_KFP_UI")


@pytest.fixture
def launch(kubeflow, little):
    """Launch the little pipeline there."""

    def call(*arguments, env=None, host=kubeflow.url):
        words = ["launch", "--pipeline", str(little), "--poll", "0.1", *arguments]
        words += ["--host", host] if host else []
        unset = dict.fromkeys((*ENVIRONMENT, "MLFLOW_TRACKING_URI", "HARDCASE_STORE"))
        clean = {**unset, "HARDCASE_KFP_TOKEN": "sesame"}
        return CliRunner(env={**clean, **(env or {})}).invoke(app, words)

    return call


def ending(kubeflow, state, tasks=None, **more):
    """Let each run end at the second look."""

    def change(run):
        if run["state"] == "RUNNING":
            kubeflow.tasks(run["run_id"], **(tasks or {"ingest": "SUCCEEDED", "sft": "SUCCEEDED"}))
            kubeflow.end(run["run_id"], state, **more)
        elif run["state"] == "PENDING":
            kubeflow.tasks(run["run_id"], ingest="RUNNING")
            run["state"] = "RUNNING"

    kubeflow.before_get = change


def one_line(done):
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


def test_launch_uploads_starts_follows_and_prints_the_link(kubeflow, launch, little):
    ending(kubeflow, "SUCCEEDED")
    done = launch("--profile", "smoke", "--seed", "3", "-p", "shards=[1,2]", "--ui", "https://ui.example/pipeline")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"version {load_package(str(little)).version}: uploaded",
        f"run run-0: started, key {kubeflow.runs['run-0']['display_name']}",
        "https://ui.example/pipeline/#/runs/details/run-0",
        "run run-0 succeeded",
    ]
    assert [line for line in done.stderr.splitlines() if not line.startswith(("warning:", "note:"))] == [
        "ingest: running",
        "ingest: succeeded, 0 s",
        "sft: succeeded, 0 s",
    ]
    assert kubeflow.runs["run-0"]["runtime_config"]["parameters"] == {"profile": "smoke", "seed": 3, "shards": [1, 2]}
    assert set(kubeflow.tokens) == {"Bearer sesame"}


def test_json_is_one_document_with_all_of_it(kubeflow, launch):
    ending(kubeflow, "SUCCEEDED")
    done = launch("--key", "march", "--image", f"{LIGHT}={PINNED}", "--json")
    told = json.loads(done.stdout)
    assert told["state"] == "SUCCEEDED"
    assert told["steps"] == {"ingest": "succeeded", "sft": "succeeded"}
    assert told["images"] == {"exec-ingest": PINNED, "exec-sft": TRAIN}
    assert [warning.split()[1] for warning in told["warnings"]] == [TRAIN]
    assert (told["key"], told["run_id"], told["uploaded"], told["started"]) == ("march", "run-0", True, True)
    assert told["link"] == f"{kubeflow.url}/#/runs/details/run-0"
    again = json.loads(launch("--key", "march", "--image", f"{LIGHT}={PINNED}", "--json").stdout)
    assert (again["run_id"], again["uploaded"], again["started"]) == ("run-0", False, False)


def test_setting_is_spelled_as_for_run_and_sent_as_the_parameter_settings(kubeflow, launch):
    done = launch("--no-follow", "--set", "sft.steps=2", "--set", "register.name=mine", "--set", "eval.parts=[a, b]")
    assert done.exit_code == 0, done.stderr
    sent = kubeflow.runs["run-0"]["runtime_config"]["parameters"]
    assert sent == {"settings": {"sft.steps": 2, "register.name": "mine", "eval.parts": ["a", "b"]}}
    for wrong in (["--set", "steps"], ["--set", "a={"], ["--set", "a=1", "-p", "settings={}"]):
        assert launch("--no-follow", *wrong).exit_code == 2
    assert len(kubeflow.runs) == 1


def test_two_launches_without_a_key_are_two_runs(kubeflow, launch):
    assert [launch("--no-follow").exit_code for _ in range(2)] == [0, 0]
    assert len(kubeflow.runs) == 2
    assert kubeflow.made("GET runs/") == 0


@pytest.mark.parametrize(
    ("state", "more", "said"),
    [
        (
            "FAILED",
            {"tasks": {"ingest": "SUCCEEDED", "sft": "FAILED"}},
            "run-0 failed at sft: its log: kubectl -n hardcase logs -l pipeline/runid=run-0",
        ),
        ("CANCELED", {}, "error: run run-0 was cancelled"),
        (
            "FAILED",
            {"tasks": {"ingest": None}, "error": {"code": 8, "message": "no quota"}},
            "failed before its first step began: no quota",
        ),
    ],
)
def test_run_that_does_not_succeed_is_exit_code_1(kubeflow, launch, state, more, said):
    ending(kubeflow, state, **more)
    done = launch()
    assert done.exit_code == 1
    assert said in one_line(done)
    told = json.loads(launch("--json", "--attach", "run-0").stdout)
    assert (told["state"], told["error"]["exit_code"]) == (state, 1)


def test_run_that_vanishes_is_exit_code_1(kubeflow, launch):
    kubeflow.before_get = lambda run: kubeflow.runs.clear()
    done = launch()
    assert done.exit_code == 1
    assert one_line(done).startswith("error: run run-0 is gone from Kubeflow: someone deleted it")


def test_launch_that_got_no_answer_says_how_to_find_the_run(kubeflow, launch):
    kubeflow.fault("POST runs", "lose")
    kubeflow.before_create = lambda: kubeflow.fault("GET runs", 501)
    done = launch("--key", "march")
    assert done.exit_code == 1
    assert one_line(done).endswith("what was started is found by launching again with --key march")
    ending(kubeflow, "SUCCEEDED")
    assert "run run-0: there already" in launch("--key", "march").stdout


def test_attach_follows_and_launches_nothing(kubeflow, launch):
    kubeflow.create_run({"display_name": "x"})
    ending(kubeflow, "SUCCEEDED")
    done = launch("--attach", "run-0")
    assert (done.exit_code, done.stdout) == (0, "run run-0 succeeded\n")
    assert "note: what the gate said is not known: name --store URI or --mlflow URL" in done.stderr
    assert {request.split()[0] for request in kubeflow.requests} == {"GET"}
    wrong = launch("--attach", "nosuch")
    assert (wrong.exit_code, one_line(wrong)) == (2, "error: run nosuch: Kubeflow has no such run")


@pytest.mark.parametrize("more", [["--dry-run"], ["--schedule", "0 3 * * 1"], ["--key", "x"], ["-p", "seed=1"]])
def test_attach_with_what_would_launch_is_refused(launch, more):
    done = launch("--attach", "run-0", *more)
    assert (done.exit_code, "--attach: it launches nothing" in one_line(done)) == (2, True)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (401, 2, "expired: ordered 401; renew it in --token-file or HARDCASE_KFP_TOKEN"),
        (403, 2, "HTTP 403, the token's account may not do this"),
        (404, 2, "HTTP 404, there is no such thing there: ordered 404; fix --host"),
        ("login", 2, "the answer is no JSON"),
        (501, 1, "HTTP 501"),
    ],
)
def test_fault_of_kubeflow_is_one_line_with_its_exit_code(kubeflow, launch, fault, code, said):
    kubeflow.fault("GET pipelines", fault)
    done = launch()
    assert done.exit_code == code
    assert said in one_line(done)
    assert "sesame" not in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("host", ["http://127.0.0.1:1/", "http://kubeflow.invalid", "nonsense://x", ""])
def test_bad_host_is_exit_code_2(launch, host):
    done = launch(host=host, env={"HARDCASE_KFP_TOKEN": None, "no_proxy": "*"})
    assert done.exit_code == 2
    assert "host" in one_line(done)
    assert "--key" not in one_line(done)  # nothing was started


def test_token_expired_while_following_says_how_to_go_on(kubeflow, launch, tmp_path):
    kubeflow.before_get = lambda run: kubeflow.fault("GET runs/", 401)
    done = launch()
    assert done.exit_code == 2
    assert one_line(done).endswith(f"run run-0 goes on: hardcase launch --attach run-0 --host {kubeflow.url}")
    assert kubeflow.runs["run-0"]["state"] == "PENDING"
    done = launch("--key", "other", "--store", str(tmp_path), "--mlflow", "http://m", "--namespace", "team")
    assert one_line(done).endswith(f"--host {kubeflow.url} --store {tmp_path} --mlflow http://m --namespace 'team'")


def test_interrupt_leaves_the_run_and_says_how_to_go_on(kubeflow, machine, little):
    kubeflow.before_get = lambda run: run.update(state="RUNNING")
    with machine.start("launch", "--pipeline", str(little), "--host", kubeflow.url, "--poll", "0.1") as process:
        limit = time.monotonic() + 60
        while kubeflow.made("GET runs/run-0") < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted; run run-0 goes on: hardcase launch --attach run-0 --host {kubeflow.url}" in said
    assert "Traceback" not in said
    assert kubeflow.runs["run-0"]["state"] == "RUNNING"
    assert kubeflow.made("terminate") == 0


def test_schedule_is_set_once_and_replaced_when_it_changes(kubeflow, launch):
    first, same, other = (
        launch("--schedule", "0 3 * * 1"),
        launch("--schedule", "0 3 * * 1"),
        launch("--schedule", "0 4 * * 1"),
    )
    assert [each.exit_code for each in (first, same, other)] == [0, 0, 0]
    assert "schedule hardcase-little (0 0 3 * * 1): set" in first.stdout
    assert f"{kubeflow.url}/#/recurringrun/details/recurring-run-0" in first.stdout
    assert "as it was" in same.stdout
    assert [each["trigger"]["cron_schedule"]["cron"] for each in kubeflow.recurring_runs.values()] == ["0 0 4 * * 1"]
    assert not kubeflow.runs


def test_dry_run_contacts_nobody_and_prints_what_a_launch_sends(kubeflow, launch):
    done = launch("--dry-run", "--json", "--key", "march", "--seed", "3", env={"HARDCASE_KFP_TOKEN": "sesame"})
    told = json.loads(done.stdout)
    assert (done.exit_code, kubeflow.requests) == (0, [])
    assert "sesame" not in done.output
    launch("--key", "march", "--seed", "3", "--no-follow")
    would = [f"{each['method']} {each['path'].lstrip('/')}" for each in told["requests"]]
    assert [each.replace("<id of the pipeline>", "pipeline-0") for each in would] == kubeflow.requests
    bodies = [each["body"] for each in told["requests"] if each["body"] and "uploadfile" not in each["body"]]
    sent = json.dumps([body for _, body in kubeflow.bodies])
    ids = {"pipeline": "pipeline-0", "pipeline version": "version-0", "experiment": "experiment-0"}
    for thing, name in ids.items():
        sent = sent.replace(f'"{name}"', f'"<id of the {thing}>"')
    assert bodies == json.loads(sent)


def test_dry_run_needs_neither_host_nor_token(launch, tmp_path):
    done = launch("--dry-run", "--token-file", str(tmp_path / "nosuch"), "--schedule", "0 3 * * 1", host="")
    assert done.exit_code == 0, done.output
    for word in ("hardcase-little", "0 0 3 * * 1", LIGHT, TRAIN, "POST             /recurringruns"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "big"], 'profile is "big", not one of tiny, smoke'),
        (["--seed", "many"], 'seed is "many", not a whole number'),
        (["-p", "nosuch=1"], "it takes no nosuch. It takes extra"),
        (["--image", "nosuch=x@sha256:" + "a" * 64], "has no image 'nosuch'"),
        (["--schedule", "often"], "--schedule 'often': not cron"),
        (["--seed", "1", "-p", "seed=2"], "'seed': given twice"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_mistake_is_said_before_anything_is_sent(kubeflow, launch, arguments, said, dry):
    done = launch(*arguments, *(["--dry-run"] if dry else []))
    assert (done.exit_code, kubeflow.requests) == (2, [])
    assert said in one_line(done)


MODEL = {"name": "image-screener", "version": 4, "alias": "challenger", "digest": "d" * 64}


def outcome(verdict="promoted", **more):
    """Record of a run, as `conclude` writes it."""
    gate = {"verdict": verdict, "reasons": ["worse than the champion"] if verdict == "rejected" else []}
    return {"status": "succeeded", "error": None, "model": MODEL, "gate": gate, "snapshot": None, **more}


@pytest.mark.parametrize("where", ["store", "mlflow"])
@pytest.mark.parametrize(("verdict", "code"), [("rejected", 3), ("promoted", 0)])
def test_gate_that_rejected_the_model_is_exit_code_3(kubeflow, launch, tmp_path, verdict, code, where):
    store, registry = str(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db"
    record, opened = outcome(verdict, warnings=["grpo: nothing changed"]), open_store(store)
    if where == "store":
        write_run(opened, "run-0", record)
    else:
        for run_id in ("run-9", "run-0"):
            show_run(registry, EXPERIMENT, run_id, record if run_id == "run-0" else {}, {}, {})
    ending(kubeflow, "SUCCEEDED")
    done = launch("--json", "--store", store, "--mlflow", registry)
    assert done.exit_code == code, done.output
    told = json.loads(done.stdout)
    assert (told["gate"]["verdict"], told["model"], told["notes"]) == (verdict, MODEL, record["warnings"])
    if code:
        assert one_line(done) == "error: rejected by the gate: worse than the champion"


def test_promoted_version_is_named(kubeflow, launch, tmp_path):
    write_run(open_store(str(tmp_path / "store")), "run-0", outcome())
    ending(kubeflow, "SUCCEEDED")
    done = launch(env={"HARDCASE_STORE": str(tmp_path / "store")})
    assert done.stdout.splitlines()[-2:] == ["run run-0 succeeded", "image-screener:4 promoted"]


def test_version_of_another_run_says_nothing_of_this_one(kubeflow, launch, tmp_path):
    """A version registered in the very minute of the run, and a run recorded under another id."""
    registry = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(registry)
    client.create_registered_model("image-screener")
    client.create_model_version("image-screener", source="file:///model", tags={"verdict": "rejected"})
    show_run(registry, EXPERIMENT, "run-9", outcome("rejected"), {}, {})
    ending(kubeflow, "SUCCEEDED", created_at="2020-01-01T00:00:00Z", finished_at="2040-01-01T00:00:00Z")
    done = launch("--json", "--mlflow", registry)
    told = json.loads(done.stdout)
    assert (done.exit_code, "gate" in told, "model" in told) == (0, False, False)
    assert told["notes"] == [
        f"what the gate said is not known: no record of this run in {registry}; "
        "name the cluster's --store URI or --mlflow URL"
    ]


def test_registry_that_does_not_answer_leaves_the_verdict_open(kubeflow, launch, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ending(kubeflow, "SUCCEEDED")
    done = launch("--mlflow", "http://127.0.0.1:1")
    assert done.exit_code == 0
    assert "note: the record of the run cannot be read: MLflow at http://127.0.0.1:1 does not answer" in done.stderr


def test_frozen_run_is_shown_by_the_records_of_its_steps(kubeflow, launch, tmp_path):
    """As a real run of one shard ended: SUCCEEDED, with tasks that Kubeflow shows running for ever."""
    store = open_store(str(tmp_path / "store"))

    def change(run):
        began = "2026-11-28T02:00:00+00:00"
        if run["state"] == "RUNNING":
            kubeflow.replay(run["run_id"], "run-succeeded-smoke")
            write_record(store, run["run_id"], StepRecord("register", "succeeded", started=began, ended=began))
            write_run(store, run["run_id"], outcome())
        elif run["state"] == "PENDING":
            run["state"] = "RUNNING"
            for step in ("configure", "sft"):
                write_record(store, run["run_id"], StepRecord(step, "succeeded", started=began, ended=began))

    kubeflow.before_get = change
    done = launch("--pipeline", "retraining", "--json", "--store", store.uri)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    ran = ("configure", "sft", "register", "conclude")
    steps = ("ingest", "validate", "rollout", "mine", "grpo", "answer", "evaluate", "drift", *ran)
    assert told["steps"] == {name: "succeeded" if name in ran else "cached" for name in steps}
    assert told["model"] == MODEL
    assert "register: succeeded" in done.stderr


def test_store_that_is_no_place_is_said_before_anything_is_sent(kubeflow, launch):
    done = launch("--store", "ftp://nowhere")
    assert (done.exit_code, kubeflow.requests) == (2, [])
    assert "ftp://nowhere" in one_line(done)


def test_committed_pipeline_can_be_launched_dry(launch):
    package = load_package("retraining")
    words = {
        "STRING": "x",
        "NUMBER_INTEGER": "1",
        "NUMBER_DOUBLE": "1",
        "BOOLEAN": "true",
        "LIST": "[]",
        "STRUCT": "{}",
    }
    given = [
        part
        for name, about in package.inputs.items()
        if not ("defaultValue" in about or about.get("isOptional"))
        for part in ("-p", f"{name}={words[about['parameterType']]}")
    ]
    done = launch("--dry-run", "--json", "--pipeline", "retraining", *given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pipeline"] == "hardcase-retraining"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--set", "grpo.batch_size=6"], "tiny.yaml: grpo: batch_size × accumulation = 6 × 1"),
        (["--set", "sft.stepz=6"], "tiny.yaml: sft.stepz"),
        (["--profile", "internvl3-2b", "--set", "cluster.gpu_memory=null"], "mine.engine is vllm, which needs GPUs"),
    ],
)
@pytest.mark.parametrize("when", [[], ["--schedule", "0 3 * * 1"]], ids=["now", "weekly"])
def test_retraining_that_cannot_work_is_not_sent(kubeflow, launch, given, named, when):
    done = launch("--pipeline", "retraining", *given, *when)
    assert done.exit_code == 2, done.output
    assert named in one_line(done)
    assert not kubeflow.runs


def test_table_moves_on_a_terminal(kubeflow, launch):
    ending(kubeflow, "SUCCEEDED")
    done = launch(env={"FORCE_COLOR": "1"})
    assert done.exit_code == 0
    assert "✓" in done.stderr
    assert "sft" in done.stderr
