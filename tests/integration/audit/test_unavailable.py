"""An audit of a store on S3 that does not answer, or refuses to: nothing is damaged, and nothing was checked."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import boto3
import pytest
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from tests.support.s3 import credentials, moto_bucket

RELEASED = Path(__file__).parents[2] / "compat" / "2"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A bucket that holds a store of registered models."""
    folder = tmp_path_factory.mktemp("store")
    with tarfile.open(RELEASED / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    with moto_bucket("audited"):
        client = boto3.client("s3")
        for path in (path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), "audited", path.relative_to(folder).as_posix())
        yield


@contextmanager
def denying(within: str) -> Iterator[None]:
    """Lead to a proxy before the endpoint that denies to read keys with `within`."""
    target = urlsplit(os.environ["AWS_ENDPOINT_URL"])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            status, content = 403, DENIED
            headers: list[tuple[str, str]] = []
            if within not in self.path:
                upstream = HTTPConnection(str(target.hostname), target.port, timeout=30)
                upstream.request("GET", self.path, headers=dict(self.headers))
                answer = upstream.getresponse()
                status, content, headers = answer.status, answer.read(), answer.getheaders()
                upstream.close()
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with credentials(f"http://127.0.0.1:{server.server_port}"):
                yield
        finally:
            server.shutdown()


def audit(home: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    monkeypatch.setenv("HARDCASE_HOME", str(home))
    spec = ["audit", "image-screener", "--key", str(RELEASED / "signing.pub")]
    return CliRunner().invoke(app, [*spec, "--store", "s3://audited/store", *options])


def last_line(done: Result) -> str:
    assert "broken" not in done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("within", ["/ledger/", "/objects/", "list-type", "/models/image-screener/1/"])
def test_a_store_that_refuses_to_answer_is_not_called_broken(bucket, tmp_path, monkeypatch, within):
    with denying("nothing"):
        assert audit(tmp_path, monkeypatch).exit_code == 0
    with denying(within):
        done = audit(tmp_path, monkeypatch, "--html", str(tmp_path / "page.html"))
    assert done.exit_code == 4
    assert "image-screener could not be checked: store s3://audited/store: cannot" in last_line(done)
    assert "AccessDenied" in last_line(done)
    assert not (tmp_path / "page.html").exists(), "a page of what was not checked"


def test_a_store_that_cannot_be_reached_is_not_called_broken(bucket, tmp_path, monkeypatch, unused_port):
    with credentials(f"http://127.0.0.1:{unused_port}"):
        done = audit(tmp_path, monkeypatch, "--json")
    assert done.exit_code == 4
    assert "could not be checked" in last_line(done)
    assert '"exit_code": 4' in done.stdout


def test_an_object_that_is_gone_is_damage(bucket, tmp_path, monkeypatch):
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket="audited", Prefix="store/models/image-screener/1/")["Contents"]
    client.delete_object(Bucket="audited", Key=listed[0]["Key"])
    assert audit(tmp_path, monkeypatch).exit_code == 1
