"""A run in containers against an engine that speaks the Docker API: what it is asked for, and what may go wrong."""

import os
from pathlib import Path

import docker
import pytest

from hardcase.compiled import list_steps
from hardcase.errors import InputError
from hardcase.provenance.code import code_digest
from hardcase.runners import containers
from hardcase.runners.containers import Inputs
from hardcase.runners.home import Home
from hardcase.runners.local import Outcome, run_pipeline
from tests.support.engine import Engine

STEPS = list_steps("retraining")
IMAGE = "hardcase/python-light:0.1.0"


@pytest.fixture
def user(monkeypatch):
    """Not root, whoever runs the tests."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 1234)
    monkeypatch.setenv("HARDCASE_WHO", "tester")


@pytest.fixture
def engine(tmp_path, monkeypatch):
    socket = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
    engine = Engine()
    with engine.serving(socket):
        yield engine


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def run(home: Home) -> Outcome:
    arguments = {"profile": "smoke", "source": "", "seed": 0, "settings": {}}
    return run_pipeline("retraining", arguments, home, Inputs(), containers=True)


def test_a_killed_container_fails_the_run_and_the_next_start_goes_on_after_it(engine, home, user):
    engine.kill = {"mine"}
    failed = run(home)
    assert failed.exit_code == 1
    assert failed.record["error"]["step"] == "mine"
    assert "exit code 137" in (failed.folder / "logs" / "mine.log").read_text(encoding="utf-8")
    assert failed.record["steps"]["grpo"]["status"] == "not reached"
    before = engine.steps()

    engine.kill = set()
    again = run(home)
    assert again.exit_code in (0, 3)
    assert list(dict.fromkeys(engine.steps()[len(before) :])) == [
        "configure",
        *STEPS[STEPS.index("mine") :],
        "conclude",
    ]
    cached = [name for name, step in again.record["steps"].items() if step["cached"]]
    assert cached == STEPS[1 : STEPS.index("mine")]
    assert sorted(engine.removed) == sorted(engine.containers), "a container was left behind"


def test_a_step_sees_what_the_run_names_and_can_change_nothing_else(engine, home, user, tmp_path, monkeypatch):
    source = tmp_path / "photos"
    source.mkdir()
    monkeypatch.setenv("HARDCASE_LAUNCHER_PID", "1")
    monkeypatch.setenv("HARDCASE_RUN", "r")
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    (home.root / "store").mkdir(parents=True)
    with containers.open_runner(home, Inputs((str(source),))) as chosen:
        run_echo(chosen)
    body = engine.created[-1]
    host = body["HostConfig"]
    assert body["User"] == "1234:1234"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["NetworkMode"] == "none"
    assert {mount["Source"]: mount["ReadOnly"] for mount in host["Mounts"]} == {
        str(home.root): False,
        str(source): True,
    }
    names = {line.partition("=")[0] for line in body["Env"]}
    assert {"HARDCASE_RUN", "HARDCASE_IMAGE"} <= names
    assert not names & {"HARDCASE_LAUNCHER_PID", "HARDCASE_COMMIT", "SECRET_OF_THE_HOST"}


def run_echo(chosen):
    options = dict(chosen.container_run_args)
    return containers.run_container(docker.from_env(), IMAGE, ["echo", "grüße"], {}, **options)


@pytest.mark.parametrize(
    ("source", "environment", "network"),
    [
        ("s3://bucket/data", {}, "host"),
        ("procedural://?samples=80", {"HARDCASE_SIGNING_KEY": "awskms:alias/x"}, "host"),
        ("procedural://?samples=80", {"OPENLINEAGE_URL": "http://127.0.0.1:5000"}, "host"),
        ("procedural://?samples=80", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "host"),
        ("procedural://?samples=80", {}, "none"),
    ],
)
def test_the_network_is_there_only_for_who_needs_it(engine, home, user, monkeypatch, source, environment, network):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with containers.open_runner(home, Inputs((source,))) as chosen:
        assert chosen.container_run_args["network_mode"] == network


def test_files_belong_to_the_user_under_a_rootless_engine_too(engine, home, user):
    podman, docker_ = {"Rootless": True}, {"SecurityOptions": ["name=rootless"]}
    for engine.about, expected in (podman, "0:0"), (docker_, "0:0"), ({"Rootless": False}, "1234:1234"):
        with containers.open_runner(home, Inputs()) as chosen:
            assert chosen.container_run_args["user"] == expected


def test_output_arrives_and_the_exit_code_is_the_containers(engine, capsys):
    code = containers.run_container(docker.from_env(), IMAGE, ["sh", "-c", "echo grüße; exit 7"], {}, environment={})
    assert code == 7
    assert "grüße\n" in capsys.readouterr().out


def test_a_container_that_is_gone_when_asked_did_not_succeed(engine, capsys):
    engine.lose = {"ingest"}
    command = ["sh", "-c", "true", "--function_to_execute", "ingest"]
    assert containers.run_container(docker.from_env(), IMAGE, command, {}, environment={}) == 1
    assert "no such container" in capsys.readouterr().out


def test_containers_of_a_killed_launcher_are_removed_first(engine, home, user):
    engine.left = {"f" * 64: str(home.root)}
    containers.check(home)
    assert "f" * 64 in engine.removed


def test_what_is_missing_is_said_before_anything_runs(engine, home, user, monkeypatch):
    engine.images = (IMAGE,)
    with pytest.raises(InputError, match=r"python-train:0\.1\.0: the container engine has none; run `make images`"):
        containers.check(home)
    engine.images = Engine().images
    monkeypatch.setattr(containers, "code_digest", lambda: "0" * 64)
    with pytest.raises(InputError, match=f"holds code {code_digest()[:12]}, not this"):
        containers.check(home)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home.root}/nothing.sock")
    with pytest.raises(InputError, match="no container engine answers"):
        containers.check(home)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(InputError, match="none may run as root"):
        containers.check(home)


def test_the_engines_default_socket_is_named_when_no_other_is(home, user, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", "")
    monkeypatch.setattr(docker, "from_env", lambda: docker.DockerClient(f"unix://{tmp_path}/none.sock"))
    with pytest.raises(InputError, match="its default socket"):
        containers.check(home)
    assert not Path(home.root).exists()
