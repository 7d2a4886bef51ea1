"""Whatever the command line and its environment hold: one line says what is wrong, without a traceback or a secret."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from tests.support.machine import COMMAND

SECRET = "s3cret-" + "x" * 12
STORE = Path(__file__).parents[2] / "compat" / "2" / "store.tar.gz"
AWS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
NOWHERE = {**AWS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
S3 = ("--store", "s3://bucket/x")
SMOKE = ("--profile", "smoke")
LONG = "a" * 300
NESTED = "[" * 100_000
AUDIT = ("audit", "image-screener")
KUBEFLOW = {"HARDCASE_KFP_HOST": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of registered models, and a file of brackets that no parser goes to the end of."""
    folder = tmp_path_factory.mktemp("folder")
    with tarfile.open(STORE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "nested").write_text(NESTED)
    return folder


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *arguments: str) -> Result:
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / ".hardcase", ignore_errors=True)
    names = [name for name in os.environ if name.startswith(("AWS_", "HARDCASE_", "MLFLOW_"))]
    for name in names:
        monkeypatch.delenv(name)
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", **environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize(
    ("environment", "arguments", "told"),
    [
        # Stores
        ({**AWS, "AWS_PROFILE": "nope"}, ("store", "check", "s3://bucket/x"), "check AWS_PROFILE"),
        ({**AWS, "AWS_ENDPOINT_URL": "nonsense"}, ("store", "check", "s3://bucket/x"), "check AWS_ENDPOINT_URL"),
        ({**AWS, "AWS_ENDPOINT_URL": f"http://u:{SECRET}@127.0.0.1:9"}, (*AUDIT, *S3), "to name no user"),
        ({**AWS, "AWS_DEFAULT_REGION": "a b"}, ("runs", *S3), "a b"),
        ({**AWS, "AWS_CONFIG_FILE": "nested"}, ("runs", *S3), "Unable to parse config file"),
        (NOWHERE, ("store", "check", "s3://bucket/x"), "fails read after write"),
        (NOWHERE, ("runs", *S3), "cannot list runs"),
        ({}, ("runs", *S3), "no AWS credentials"),
        *(
            ({**NOWHERE, "HARDCASE_CACHE_GB": size}, (*AUDIT, *S3), f"HARDCASE_CACHE_GB={size}: no number")
            for size in ("20GB", "nan", "-1", "inf", "1e400", "٣")
        ),
        ({}, ("runs", "--store", "s3://A_B"), "not of the form s3://bucket/prefix"),
        ({}, ("runs", "--store", "ftp://x"), "not a local path"),
        ({}, ("runs", "--store", "/dev/null"), "no such folder; run `hardcase run` first"),
        ({}, ("store", "check", "/dev/null/x"), "cannot create its folder"),
        ({}, ("store", "check", ""), "not a local path"),
        ({}, ("store", "gc", "--store", "store", "--older-than", "1e300"), "older-than"),
        # Homes
        *(
            ({"HARDCASE_HOME": home}, ("ingest", "--source", "procedural://?samples=2"), told)
            for home, told in (
                ("/proc/x", "/proc/x: No such file or directory; name another path"),
                ("/dev/null/x", "/dev/null/x: Not a directory; name another path"),
                (LONG, "File name too long; name another path"),
            )
        ),
        ({"HARDCASE_HOME": LONG}, AUDIT, "File name too long"),
        # Audits
        ({}, (*AUDIT, "--store", "store", "--html", "/no/such/a.html"), "/no/such/.a.html.draft: No such file"),
        ({}, (*AUDIT, "--store", "store", "--html", "."), "is a folder; name a file"),
        ({}, (*AUDIT, "--store", "store", "--html", "store"), "is a folder; name a file"),
        ({}, (*AUDIT, "--store", "store", "--key", "nowhere.pem"), "nowhere.pem: No such file"),
        ({}, (*AUDIT, "--store", "store", "--key", "nested"), "not a public key in PEM"),
        ({}, ("audit", "image-screener:99999999999999999999", "--store", "store"), "no such folder"),
        ({}, ("audit", "", "--store", "store"), "no such folder"),
        ({}, ("audit", "a@b@c", "--store", "store"), "no such folder"),
        ({}, (*AUDIT, "--store", "store", "--diff", "1", "x"), "x"),
        ({"HARDCASE_TRUSTED_KEYS": "nested"}, (*AUDIT, "--store", "store"), "not a public key in PEM"),
        ({"HARDCASE_SIGNING_KEY": "nowhere.pem"}, ("rollback", "image-screener", "--store", "store"), "nowhere.pem"),
        ({"HARDCASE_SIGNING_KEY": "nested"}, ("rollback", "image-screener", "--store", "store"), "nested"),
        ({"HARDCASE_SIGNING_KEY": "awskms:x"}, ("rollback", "image-screener", "--store", "store"), "awskms:x"),
        # MLflow
        *(
            ({"MLFLOW_TRACKING_URI": uri}, (*AUDIT, "--store", "store"), "name sqlite:////absolute/path")
            for uri in (f"postgresql://u:{SECRET}@127.0.0.1:1/db", f"mysql://{SECRET}@x/db", "databricks", "./mlruns")
        ),
        # Profiles and settings
        ({}, ("run", "--profile", LONG), LONG[:50]),
        ({}, ("run", "--profile", "nested.yaml"), "nested.yaml"),
        ({}, ("run", *SMOKE, "--set", f"sft.steps={NESTED}"), "not YAML of plain values"),
        ({}, ("run", *SMOKE, "--set", "sft.steps=!!python/object:os.x {}"), "not YAML of plain values"),
        ({}, ("run", *SMOKE, "--set", "sft.steps=1e999"), "sft.steps"),
        ({}, ("run", *SMOKE, "--set", "="), "not of the form"),
        ({}, ("run", *SMOKE, "--set", "sft=1"), "sft"),
        ({}, ("run", *SMOKE, "--seed", "99999999999999999999"), "seed"),
        # Sources and images
        ({}, ("source-digest", "/nowhere"), "it does not exist"),
        ({}, ("source-digest", "file://host/x"), "not a local path"),
        ({}, ("ingest", "--source", "s3://"), "not of the form s3://bucket/prefix"),
        ({}, ("screen", "--model", "x", "/etc/passwd", "b", "c", "d", "e"), "/etc/passwd"),
        ({}, ("evaluate", "--model", "x:1", "--source", "y"), "no such folder; run `hardcase run` first"),
        ({}, ("report", "../../etc"), "../../etc"),
        ({}, ("report", "--store", "nowhere"), "no such folder"),
        # Kubeflow
        ({**KUBEFLOW, "HARDCASE_KFP_TOKEN": f"{SECRET}\nx"}, ("launch", *SMOKE), "there is no token in it"),
        ({**KUBEFLOW, "HARDCASE_KFP_TOKEN": f"{SECRET}€"}, ("launch", *SMOKE), "there is no token in it"),
        ({**KUBEFLOW, "HARDCASE_KFP_TOKEN_FILE": "nowhere"}, ("launch", *SMOKE), "the token cannot be read"),
        ({**KUBEFLOW, "HARDCASE_KFP_TOKEN_FILE": "."}, ("launch", *SMOKE), "the token cannot be read"),
        ({"HARDCASE_KFP_HOST": f"http://u:{SECRET}@127.0.0.1:9"}, ("launch", *SMOKE), "names a user or a password"),
        ({"HARDCASE_KFP_HOST": f"http://u:{SECRET}@[::1"}, ("launch", *SMOKE), "names a user or a password"),
        ({"HARDCASE_KFP_HOST": "http://[::1"}, ("launch", *SMOKE), "not a URL of Kubeflow's API"),
        ({"HARDCASE_KFP_HOST": "http://127.0.0.1:99999"}, ("launch", *SMOKE), "not a URL of Kubeflow's API"),
        *(
            (KUBEFLOW, ("launch", *SMOKE, "--schedule", cron), told)
            for cron, told in (
                ("99 * * * *", "'99' is no minute from 0 to 59"),
                ("0 3 * * 7", "'7' is no weekday from 0 to 6"),
                ("0 3 * foo 1", "'foo' is no month"),
                ("*/0 3 * * 1", "'*/0' is no minute"),
                ("0 5-3 * * 1", "'5-3' is no hour"),
                ("0 3 , * 1", "'' is no day"),
                ("0 0 0 31 2 *", "no such date exists"),
                ("* * * *", "not cron"),
                ("0 3 * * 1 2026 x", "not cron"),
            )
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: tuple[str, ...], told: str
) -> None:
    done = call(folder, monkeypatch, environment, *arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert SECRET not in done.output
    lines = [line for line in done.output.splitlines() if line.startswith("error:")]
    shown = " ".join(lines) if lines else " ".join(done.output.split())  # typer draws a box
    assert len(lines) <= 1
    assert told in shown
    assert arguments[0] in ("run", "ingest") or not (folder / ".hardcase").exists(), (
        "a command that reads leaves nothing"
    )


def test_reading_a_store_that_is_not_there_creates_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (AUDIT, ("runs",), ("report",), ("rollback", "image-screener"), ("store", "gc")):
        done = call(folder, monkeypatch, {}, *arguments, "--store", "typo")
        assert "no such folder; run `hardcase run` first" in done.output
    assert not (folder / "typo").exists()
    assert not (folder / ".hardcase").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_output_in_any_encoding(folder: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "HARDCASE_HOME": str(folder / "home")}
    options: dict[str, Any] = {"env": environment, "cwd": folder, "capture_output": True}
    key = STORE.with_name("signing.pub")
    done = subprocess.run([*COMMAND, *AUDIT, "--store", "store", "--key", str(key)], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"image-screener" in done.stdout


def test_the_module_runs_without_tracebacks_for_a_closed_output(folder: Path) -> None:
    command = f"{sys.executable} -P -m hardcase --help | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
