"""What a run needs only at its end is checked before its first work, in a line, and leaves nothing behind."""

import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from hardcase.config import RegisterConfig
from hardcase.errors import InputError, UnavailableError
from hardcase.provenance.signing import Keyring, make_key, open_keyring, read_public_keys
from hardcase.registry.ledger import read_ledger
from hardcase.steps.configure import check_ledger
from hardcase.steps.preflight import check_surroundings
from hardcase.store.store import object_name, open_store
from tests.support.faults import faulty_endpoint
from tests.support.s3 import credentials, moto_bucket, sloppy_endpoint

RELEASED = Path(__file__).parents[2] / "compat" / "2"
SECRET = "s3cret-" + "x" * 12
MAIL = {"HARDCASE_SMTP_HOST": "127.0.0.1", "HARDCASE_MAIL_FROM": "a@b.example", "HARDCASE_MAIL_TO": "c@d.example"}
REGISTRY = "name sqlite:////absolute/path"


def write_key(private: ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command line in a folder with files that are no databases and no keys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text")
    (tmp_path / "encrypted.pem").write_bytes(write_key(ed25519.Ed25519PrivateKey.generate(), b"password"))
    (tmp_path / "exchange.pem").write_bytes(write_key(x25519.X25519PrivateKey.generate()))
    for name in [name for name in os.environ if name.startswith(("HARDCASE_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)

    def call(environment: dict[str, str], *arguments: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.replace("FOLDER", str(tmp_path)))
        return CliRunner().invoke(app, [*arguments])

    return call


REFUSED = [
    *(({"MLFLOW_TRACKING_URI": uri}, REGISTRY) for uri in ("databricks", "./mlruns", "sqlite:///relative.db")),
    ({"MLFLOW_TRACKING_URI": f"postgresql://u:{SECRET}@127.0.0.1/db"}, REGISTRY),
    ({"MLFLOW_TRACKING_URI": "sqlite:////x.db?timeout=3"}, REGISTRY),
    ({"MLFLOW_TRACKING_URI": f"http://u:{SECRET}@127.0.0.1"}, "a password in its address"),
    *(({"MLFLOW_TRACKING_URI": f"http{rest}"}, "not a URL") for rest in ("://", "://[::1", "s://x:99999", "://a b")),
    ({"MLFLOW_TRACKING_URI": "sqlite:////proc/version"}, "not an SQLite database"),
    ({"MLFLOW_TRACKING_URI": "sqlite:///FOLDER"}, "cannot be written"),
    ({"MLFLOW_TRACKING_URI": "sqlite:///FOLDER/text/x.db"}, "cannot be written"),
    ({"MLFLOW_TRACKING_URI": "sqlite:///FOLDER/text"}, "not an SQLite database"),
    ({"HARDCASE_SIGNING_KEY": "nowhere.pem"}, "No such file"),
    ({"HARDCASE_SIGNING_KEY": "."}, "Is a directory"),
    ({"HARDCASE_SIGNING_KEY": "text"}, "not an unencrypted private key"),
    ({"HARDCASE_SIGNING_KEY": "encrypted.pem"}, "not an unencrypted private key"),
    ({"HARDCASE_SIGNING_KEY": "exchange.pem"}, "not an unencrypted private key"),
    ({"HARDCASE_TRUSTED_KEYS": "text"}, "not a public key"),
    ({"HARDCASE_WEBHOOK": "hooks.example/x"}, "HARDCASE_WEBHOOK: no URL"),
    ({"HARDCASE_WEBHOOK": f"ftp://hooks.example/{SECRET}"}, "HARDCASE_WEBHOOK: no URL"),
    ({"HARDCASE_WEBHOOK": f"https://hooks.invalid/{SECRET}"}, "HARDCASE_WEBHOOK: host hooks.invalid is not found"),
    ({"HARDCASE_WEBHOOK": f"https://{'a' * 70}.example/{SECRET}"}, "is not found"),
    ({**MAIL, "HARDCASE_SMTP_HOST": "mail.invalid"}, "HARDCASE_SMTP_HOST: host mail.invalid is not found"),
    ({**MAIL, "HARDCASE_MAIL_TO": ""}, "HARDCASE_MAIL_TO not"),
    ({**MAIL, "HARDCASE_MAIL_FROM": "a@b.example\nBcc: x"}, "HARDCASE_MAIL_FROM not"),
    ({**MAIL, "HARDCASE_SMTP_PORT": "smtp"}, "HARDCASE_SMTP_PORT=smtp: no port"),
    ({**MAIL, "HARDCASE_SMTP_PORT": "70000"}, "HARDCASE_SMTP_PORT=70000: no port"),
    ({"HARDCASE_UI": "kubeflow.example"}, "HARDCASE_UI=kubeflow.example: no URL"),
    ({"HARDCASE_STORE": "text"}, "cannot create its folder"),
]


@pytest.mark.parametrize(("environment", "told"), REFUSED)
def test_a_run_that_would_fail_at_its_end_is_refused_before_it_begins(call, tmp_path, environment, told):
    done = call(environment, "run", "--profile", "smoke")
    assert (done.exit_code, SECRET in done.output) == (2, False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error:")
    assert told in line
    assert not (tmp_path / ".hardcase" / "runs").exists()


def test_a_webhook_behind_a_proxy_is_found_by_the_proxy(call, tmp_path):
    environment = {"HARDCASE_WEBHOOK": "https://hooks.invalid/x", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = call({**environment, "HARDCASE_UI": "the check went on to this"}, "run", "--profile", "smoke")
    assert "HARDCASE_UI" in done.stderr


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MLFLOW_TRACKING_URI": "databricks"}, REGISTRY),
        ({"HARDCASE_WEBHOOK": "https://hooks.invalid/x"}, "host hooks.invalid is not found"),
        ({"HARDCASE_SIGNING_KEY": ""}, "no signing key: set HARDCASE_SIGNING_KEY"),
    ],
)
def test_the_first_step_refuses_what_its_pod_sees(tmp_path, environment, told):
    make_key(tmp_path / "keys")
    own = {"HARDCASE_STORE": str(tmp_path / "store"), "HARDCASE_SIGNING_KEY": str(tmp_path / "keys" / "signing.pem")}
    variables = {"PATH": os.environ["PATH"], "HARDCASE_SCRATCH": str(tmp_path / "scratch"), **own, **environment}
    code = "from hardcase.steps.configure import execute; execute('smoke', '', 0, {})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert '"state": "refused"' in done.stdout
    assert told in done.stdout
    assert not (tmp_path / "scratch").exists()


def test_launch_names_a_wrong_mlflow_or_store_before_it_sends_anything(call, tmp_path):
    launch = ("launch", "--profile", "smoke", "--host", "http://127.0.0.1:9")
    for environment, options, told in (
        ({"MLFLOW_TRACKING_URI": "databricks"}, (), REGISTRY),
        ({"MLFLOW_TRACKING_URI": ""}, ("--store", "typo"), "no such folder"),
    ):
        done = call(environment, *launch, *options)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert told in done.stderr
    assert not (tmp_path / "typo").exists()


def check(uri: str, keys: Path) -> None:
    make_key(keys)
    keyring = open_keyring(str(keys / "signing.pem"), [])
    check_surroundings(open_store(uri, cached=False), keyring, "http://127.0.0.1:9", {})


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    with moto_bucket("checked", versioned=True):
        yield


@pytest.mark.parametrize("denied", ["PUT", "GET keys", "GET list"])
def test_a_right_to_the_store_that_is_missing_is_named(bucket, tmp_path, denied):
    method, _, within = denied.partition(" ")
    within = within.replace("keys", "/keys/").replace("list", "list-type")
    remedy = r"AccessDenied: .*let the role list, read and write there"
    with faulty_endpoint() as faults, pytest.raises(InputError, match=remedy):
        faults.deny(within, method)
        check("s3://checked/denied", tmp_path)


def test_a_store_that_does_not_answer_may_answer_later(tmp_path, unused_port):
    with credentials(f"http://127.0.0.1:{unused_port}"), pytest.raises(UnavailableError):
        check("s3://checked/silent", tmp_path)


def test_a_store_that_ignores_conditions_is_refused(tmp_path):
    with sloppy_endpoint(), pytest.raises(InputError, match="ignores conditions"):
        check("s3://checked/sloppy", tmp_path)


def test_the_check_leaves_the_public_key_once_and_nothing_else(bucket, tmp_path):
    for _ in range(3):
        check("s3://checked/clean", tmp_path)
    versions = boto3.client("s3").list_object_versions(Bucket="checked", Prefix="clean/")["Versions"]
    assert [Path(version["Key"]).parent.name for version in versions] == ["keys"]


def test_the_signing_key_of_a_home_is_its_owners_only(tmp_path):
    make_key(tmp_path)
    assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600


def test_a_run_whose_champion_lost_its_evaluation_is_refused_before_it_trains(tmp_path):
    with tarfile.open(RELEASED / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = open_store(str(tmp_path / "store"))
    ledger = read_ledger(store, "image-screener", Keyring(read_public_keys([RELEASED / "signing.pub"])))
    check_ledger(store, ledger, "", RegisterConfig())
    assert ledger.champion is not None
    (tmp_path / "store" / object_name(ledger.champion.evaluation)).unlink()
    with pytest.raises(InputError, match=r"an evaluation to compare with is lost: .* is missing"):
        check_ledger(store, ledger, "", RegisterConfig())
