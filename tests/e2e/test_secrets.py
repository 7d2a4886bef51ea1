"""Secrets in every input that takes one: none is in what commands print, write or send, whatever goes wrong."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import boto3
import pytest

from tests.support.kubeflow_server import kubeflow_server
from tests.support.machine import Machine
from tests.support.s3 import moto_bucket

# Each with characters that files and URLs escape, so that an escaped one is found too.
SECRETS = {
    name: f"planted+{name}/{number:04}=&x"
    for number, name in enumerate(
        (
            *("aws-key", "aws-token", "smtp", "webhook", "kfp-token", "kfp-file", "mlflow-token", "mlflow-password"),
            *("openlineage", "wandb", "hugging-face", "source-user", "source-query", "setting", "tracking", "endpoint"),
        )
    )
}
FOLDED = {name: secret.replace("/", "%2F") for name, secret in SECRETS.items()}  # as a URL holds it
STORE = "s3://secrets/store"


@dataclass(frozen=True)
class Careless(Machine):
    """A machine whose environment holds every secret, and a command line that is given some."""

    receiver: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "TMPDIR": str(self.home.parent / "tmp"),
            "AWS_SECRET_ACCESS_KEY": SECRETS["aws-key"],
            "AWS_SESSION_TOKEN": SECRETS["aws-token"],
            "AWS_MAX_ATTEMPTS": "1",
            "HARDCASE_WEBHOOK": f"{self.receiver}/{FOLDED['webhook']}",
            "HARDCASE_SMTP_HOST": "127.0.0.1",
            "HARDCASE_SMTP_PORT": "9",
            "HARDCASE_SMTP_USER": "someone",
            "HARDCASE_SMTP_PASSWORD": SECRETS["smtp"],
            "HARDCASE_MAIL_FROM": "a@example.org",
            "HARDCASE_MAIL_TO": "b@example.org",
            "HARDCASE_KFP_TOKEN": SECRETS["kfp-token"],
            "MLFLOW_TRACKING_TOKEN": SECRETS["mlflow-token"],
            "MLFLOW_TRACKING_USERNAME": "someone",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow-password"],
            "OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "http", "url": self.receiver, "auth": {"type": "api_key", "apiKey": SECRETS["openlineage"]}}
            ),
            "WANDB_API_KEY": SECRETS["wandb"],
            "HF_TOKEN": SECRETS["hugging-face"],
        }


@dataclass(frozen=True)
class Received:
    """Bodies that were sent to the receiver."""

    url: str
    bodies: list[bytes]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Received]:
    """A server that stores what it is sent, answers nothing useful, and needs the secrets in the requests' heads."""
    bodies = list[bytes]()

    class Receiver(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield Received(f"http://127.0.0.1:{server.server_address[1]}", bodies)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def careless(tmp_path: Path, receiver: Received) -> Iterator[Careless]:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "token").write_text(SECRETS["kfp-file"])
    receiver.bodies.clear()
    with moto_bucket("secrets"):
        yield Careless(tmp_path / "home", receiver.url)


def find_secrets(content: bytes) -> list[str]:
    """Return the names of the secrets in some bytes: as they are, as a URL or JSON has them, or in base64."""
    text = content.decode("utf-8", "replace")
    found = list[str]()
    for name, secret in SECRETS.items():
        encoded = base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]
        escaped = (secret, quote(secret), quote(secret, safe=""), FOLDED[name], secret.replace("&", "\\u0026"), encoded)
        if any(form in text for form in escaped) or f"planted+{name}" in text:
            found.append(name)
    return found


def search(careless: Careless, receiver: Received, *outputs: str) -> dict[str, list[str]]:
    """Return the secrets in all that was printed, written to disk or S3, or sent in a body, by where."""
    places = {f"output {number}": output.encode() for number, output in enumerate(outputs)}
    places |= {f"body {number}": body for number, body in enumerate(receiver.bodies)}
    root = careless.home.parent
    for path in root.rglob("*"):
        if path.is_file() and path != root / "token":
            places[str(path.relative_to(root))] = path.read_bytes()
    for path in root.rglob("*.db"):  # strings of a database may go over two pages
        with closing(sqlite3.connect(path)) as database:
            places[f"{path.name} as SQL"] = "\n".join(database.iterdump()).encode()
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="secrets"):
        for entry in page.get("Contents", []):
            places[entry["Key"]] = client.get_object(Bucket="secrets", Key=entry["Key"])["Body"].read()
    return {place: names for place, content in places.items() if (names := find_secrets(content))}


def test_a_search_finds_each_form_of_a_secret() -> None:
    for name, secret in SECRETS.items():
        forms = (secret, FOLDED[name], base64.b64encode(f"u:{secret}".encode()).decode(), json.dumps({"x": secret}))
        assert [find_secrets(form.encode()) for form in forms[:2] + forms[3:]] == [[name]] * 3


def test_a_run_with_secrets_leaves_none(careless: Careless, receiver: Received) -> None:
    done = careless.call("run", "--profile", "smoke", "--store", STORE)
    assert done.returncode in (0, 3), done.stderr
    outputs = [done.stdout, done.stderr]
    page = careless.home / "audit.html"
    for arguments in (
        ("audit", "image-screener:1", "--store", STORE, "--html", str(page)),
        ("runs", "--store", STORE, "--json"),
        ("report", "latest"),
        ("store", "check", STORE),
    ):
        done = careless.call(*arguments)
        assert done.returncode == 0, done.stderr
        outputs += [done.stdout, done.stderr]
    assert page.exists()
    assert search(careless, receiver, *outputs) == {}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("--source", f"https://u:{FOLDED['source-user']}@127.0.0.1/x"), {}),
        (("--source", f"s3://u:{FOLDED['source-user']}@bucket/x"), {}),
        (("--source", f"s3://secrets/x?X-Amz-Signature={FOLDED['source-query']}"), {}),
        (("--set", f"sft.trl={{hub_token: '{SECRETS['setting']}'}}"), {}),
        ((), {"MLFLOW_TRACKING_URI": f"postgresql://u:{SECRETS['tracking']}@127.0.0.1:9/x"}),
        ((), {"MLFLOW_TRACKING_URI": f"http://u:{SECRETS['tracking']}@127.0.0.1:9/x"}),
        (("--store", "s3://secrets/x"), {"AWS_ENDPOINT_URL": f"http://u:{SECRETS['endpoint']}@127.0.0.1:9"}),
        (("--store", "s3://secrets/x"), {"AWS_SESSION_TOKEN": f"{SECRETS['aws-token']}\nnewline"}),
    ],
)
def test_a_run_that_is_refused_shows_no_secret(
    careless: Careless,
    receiver: Received,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Careless, "environment", {**careless.environment, **environment})
        done = careless.call("run", "--profile", "smoke", *arguments)
        listed = careless.call("runs")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert search(careless, receiver, done.stdout, done.stderr, listed.stdout) == {}


def test_a_launch_sends_its_token_in_no_body_and_prints_it_nowhere(
    careless: Careless, receiver: Received, unused_port: int
) -> None:
    outputs = list[str]()
    with kubeflow_server() as kubeflow:
        for host in (kubeflow.url, f"http://127.0.0.1:{unused_port}", f"https://u:{SECRETS['endpoint']}@127.0.0.1"):
            for token in ((), ("--token-file", str(careless.home.parent / "token"))):
                to = ("--host", host, "--namespace", "", *token)
                done = careless.call("launch", *to, "--profile", "smoke", "--no-follow")
                assert done.returncode == 0 if host == kubeflow.url else "Traceback" not in done.stderr
                outputs += [done.stdout, done.stderr]
    assert search(careless, receiver, *outputs) == {}
