"""`make acceptance` against a stand-in: the same checks, unchanged, and what they say where something is missing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from hardcase.provenance.signing import make_key
from tests.support.cluster import Cluster, standing_in

REPOSITORY = Path(__file__).resolve().parents[2]
AIRFLOW = REPOSITORY / ".venv-airflow" / "bin" / "python"
Check = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a step finds in its pod's ConfigMap."""
    make_key(tmp_path / "keys")
    return {
        "HARDCASE_STORE": (tmp_path / "store").as_uri(),
        "HARDCASE_SIGNING_KEY": str(tmp_path / "keys" / "signing.pem"),
        "HARDCASE_SCRATCH": str(tmp_path / "scratch"),
        "HARDCASE_CACHE": str(tmp_path / "near"),
    }


@pytest.fixture
def mlflow(tmp_path: Path, environment: dict[str, str], unused_port: int) -> Iterator[str]:
    """A server of MLflow, which steps use."""
    url = environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{unused_port}"
    words = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "mlflow"),
    ]
    with (tmp_path / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(unused_port), "--workers", "1", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "mlflow.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def several() -> bool:
    return True


@pytest.fixture
def cluster(tmp_path: Path, environment: dict[str, str], several: bool) -> Iterator[Cluster]:
    with standing_in(tmp_path, environment, several) as there:
        yield there


@pytest.fixture
def check(cluster: Cluster) -> Check:
    """Check it as `make acceptance` does, with all options."""
    context = {"name": "stand-in", "context": {"cluster": "stand-in", "user": "stand-in"}}
    config = cluster.folder / "kubeconfig"
    known = {"clusters": [{"name": "stand-in", "cluster": {"server": cluster.url}}], "users": [{"name": "stand-in"}]}
    config.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "contexts": [context], **known}))
    token = cluster.folder / "token"
    token.write_text("sesame", encoding="utf-8")

    def run(*arguments: str, **options: str) -> "subprocess.CompletedProcess[str]":
        given = {"HOST": cluster.url, "TOKEN_FILE": str(token), "STORE": cluster.environment["HARDCASE_STORE"]}
        given |= {"CONTEXT": "stand-in", "AIRFLOW": str(AIRFLOW), "LIMIT": "900", "LIMIT_CACHED": "600", **options}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # with kubectl
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "acceptance", "tests/acceptance", *arguments],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith(("ACCEPTANCE_", "PYTEST"))},
                **{f"ACCEPTANCE_{name}": value for name, value in given.items()},
                "KUBECONFIG": str(config),
                "PATH": path,
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )

    return run


def table(done: "subprocess.CompletedProcess[str]") -> dict[str, tuple[str, str]]:
    """Return the table that was printed: of each check the result and what was seen."""
    rows: dict[str, tuple[str, str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if len(cells) != 4 or cells[0] == "check":
            continue
        if cells[2]:
            name = cells[0]
            rows[name] = (cells[1], cells[3])
        else:
            result, seen = rows.pop(name)
            name = f"{name} {cells[0]}".strip()
            rows[name] = (f"{result} {cells[1]}".strip(), f"{seen} {cells[3]}")
    return rows


def test_all_checks_pass_and_leave_nothing(mlflow: str, cluster: Cluster, check: Check) -> None:
    assert AIRFLOW.is_file(), f"{AIRFLOW}: not there; make .venv-airflow/.ready"
    [key] = (cluster.folder / "keys").glob("*.pub")
    done = check(MLFLOW=mlflow, KEY=str(key))
    rows = table(done)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert len(rows) >= 25 and {result for result, _ in rows.values()} == {"ok"}, rows
    assert cluster.recurring_runs == {} and cluster.pipelines == {}
    assert {each["storage_state"] for each in [*cluster.experiments.values(), *cluster.runs.values()]} == {"ARCHIVED"}
    assert {run["state"] for run in cluster.runs.values()} == {"SUCCEEDED", "FAILED"}
    assert all(run["service_account"] == "pipeline-runner" for run in cluster.runs.values())


def test_what_is_missing_is_said_in_one_line_and_nothing_is_launched(cluster: Cluster, check: Check) -> None:
    settings = cluster.objects["/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"]["data"]
    settings |= {"artifactRepository": "archiveLogs: true", "workflowDefaults": "{}"}
    own = "/api/v1/namespaces/hardcase"
    cluster.objects[f"{own}/serviceaccounts/pipeline-runner"]["automountServiceAccountToken"] = False
    quota = cluster.objects[f"{own}/resourcequotas"]["items"][0]["status"]
    quota["used"] = {**quota["hard"], "pods": "200"}
    cluster.fault("POST pipelines/upload_version", "version-upload-forbidden")
    cluster.fault("POST recurringruns", "recurring-create-forbidden")
    cluster.fault("POST experiments/.*:archive", 403)
    done = check(UI=f"{cluster.url}/nowhere")
    rows = table(done)
    assert done.returncode == 1, done.stdout[-6000:]
    for name, said in {
        "token may upload pipelines": "the token may not upload pipelines: bind the Role run-publisher",
        "token may keep schedules": "the token may not create recurring runs (jobs): bind the Role run-publisher",
        "ui answers": "say UI=URL of the start page",
        "logs are archived where runs may write or nowhere": "set archiveLogs: false",
        "steps are tried again and layers are not": "set templateDefaults.retryStrategy",
        "namespace has what steps mount": "remove automountServiceAccountToken: false",
        "quota has room for a step": "pods: 200 of 200 used",
    }.items():
        assert rows[name][0] == "FAILED" and said in rows[name][1], (name, rows[name])
    assert {result for name, (result, _) in rows.items() if "launch" in name} == {"FAILED"}
    assert cluster.works == {}, "a run was started though it cannot succeed"
    assert cluster.pipelines == {}, "what was made is removed also then"
    assert re.search("Experiment acceptance-.*: STAYS, remove it by hand .*HTTP 403", done.stdout)


@pytest.mark.parametrize("several", [False])
def test_an_installation_for_one_user_has_no_namespace(cluster: Cluster, check: Check) -> None:
    rows = table(check("-k", "test_access", MODE="single"))
    assert len(rows) >= 10 and {result for result, _ in rows.values()} == {"ok"}, rows
    assert {each.get("namespace") for each in cluster.experiments.values()} == {None}
    [(result, said)] = table(check("-k", "api_answers")).values()
    assert (result, said) == ("FAILED", "the installation is not as MODE says: say MODE=single")


def test_what_was_not_asked_for_is_called_unchecked(cluster: Cluster, check: Check) -> None:
    done = check("-k", "store or quota", STORE="", CONTEXT="")
    assert done.returncode == 0, done.stdout[-6000:]
    assert table(done) == {
        "store can be read": ("not checked", "it needs STORE=…"),
        "quota has room for a step": ("not checked", "it needs CONTEXT=…"),
    }


def test_make_hands_each_option_on_and_asks_for_a_host() -> None:
    make = ["make", "--silent", "-o", ".venv/.ready", "-o", ".venv-airflow/.ready", "acceptance"]
    told = subprocess.run(
        [*make, "-n", "HOST=https://kubeflow.example", "PINS=a=b c=d", "MODE=single"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for said in ('HOST="https://kubeflow.example"', 'PINS="a=b c=d"', 'MODE="single"', 'STORE=""'):
        assert f"ACCEPTANCE_{said}" in told
    done = subprocess.run([*make, "HOST="], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "name HOST=URL" in done.stderr
