"""A source on S3 is the source it would be in a folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from hardcase.config import IngestConfig
from hardcase.data.remote import digest_remote_source, fetch_source
from hardcase.data.scenes import write_source
from hardcase.errors import InputError
from hardcase.steps.ingest import run
from tests.support.s3 import moto_bucket


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "march ü"
    write_source(folder, samples=6, seed=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def bucket(folder: Path) -> Iterator[None]:
    with moto_bucket("data"):
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"team/{folder.name}/{path.relative_to(folder).as_posix()}"
                boto3.client("s3").put_object(Bucket="data", Key=key, Body=path.read_bytes())
        yield


def snapshot_of(source: str, desk: Path) -> bytes:
    (desk / "scratch").mkdir(parents=True)
    places = desk / "snapshot", desk / "quarantine", desk / "scratch"
    run(source, (desk / "store").as_uri(), IngestConfig(eval_share=0.5), *places)
    return places[0].read_bytes()


@pytest.mark.parametrize("suffix", ["", "/", "/manifest.jsonl"])
def test_the_snapshot_is_that_of_the_folder(folder: Path, tmp_path: Path, suffix: str) -> None:
    there = snapshot_of(f"s3://data/team/{folder.name}{suffix}", tmp_path / "there")
    assert there == snapshot_of(str(folder), tmp_path / "here")


def test_what_was_fetched_whole_is_not_fetched_again(folder: Path, tmp_path: Path) -> None:
    uri = f"s3://data/team/{folder.name}"
    fetch_source(uri, tmp_path)
    pictures = sorted(path for path in tmp_path.rglob("*") if path.suffix != ".jsonl" and path.is_file())
    pictures[0].unlink()
    pictures[1].write_bytes(b"cut")
    kept = pictures[2].stat().st_mtime_ns
    fetch_source(uri, tmp_path)
    for path in pictures[:2]:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
    assert pictures[2].stat().st_mtime_ns == kept


def test_the_digest_changes_with_what_lies_there(folder: Path) -> None:
    client, uri = boto3.client("s3"), f"s3://data/team/{folder.name}"
    before = digest_remote_source(uri)
    assert digest_remote_source(f"{uri}/manifest.jsonl") == before
    client.put_object(Bucket="data", Key=f"team/{folder.name}/more.txt", Body=b"x")
    assert digest_remote_source(uri) != before
    client.delete_object(Bucket="data", Key=f"team/{folder.name}/more.txt")
    assert digest_remote_source(uri) == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3://data/nothing", "no objects there"), ("s3://nowhere/x", "cannot be listed"), ("s3://", "s3://bucket")],
)
def test_a_wrong_address_is_the_users_error(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fetch_source(uri, tmp_path)


def test_keys_that_are_file_and_folder_at_once_are_refused(tmp_path: Path) -> None:
    for key in ("odd/a", "odd/a/b"):
        boto3.client("s3").put_object(Bucket="data", Key=key, Body=json.dumps(key).encode())
    with pytest.raises(InputError, match="the key 'a' cannot be a file's name; rename it"):
        fetch_source("s3://data/odd", tmp_path)
