"""An audit of a store on S3 that does not answer, or refuses to: nothing is damaged, and nothing was checked."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner, Result

from hardcase.cli.main import app
from tests.support.faults import faulty_endpoint
from tests.support.s3 import credentials, moto_bucket

RELEASED = Path(__file__).parents[2] / "compat" / "2"


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
    with faulty_endpoint() as faults:
        assert audit(tmp_path, monkeypatch).exit_code == 0
        faults.deny(within)
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
