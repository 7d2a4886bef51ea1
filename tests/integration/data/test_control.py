"""What S3 remembers of names, and forbids: versions and Object Lock."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from hardcase.errors import HardcaseError, InputError
from hardcase.store import control
from hardcase.store.control import ObjectVersion, list_all_versions, retain
from hardcase.store.store import open_store
from tests.support.s3 import moto_bucket

URI, NAME = "s3://locked/team a", "models/m/ledger/1.json"


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[None]:
    with moto_bucket("locked", object_lock=True):
        client = boto3.client("s3")
        client.create_bucket(Bucket="plain", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield


def put(body: bytes, name: str) -> str:
    version: str = boto3.client("s3").put_object(Bucket="locked", Key=f"team a/{name}", Body=body)["VersionId"]
    return version


def list_versions(uri: str, name: str) -> list[ObjectVersion] | None:
    versions = list_all_versions(uri, name)
    return None if versions is None else versions.get(name, [])


def test_a_name_written_once_has_one_version_and_one_never_written_none() -> None:
    open_store(URI).put_named("models/once/1", b"1")
    open_store(URI).put_named("models/once/1", b"2")
    (version,) = list_versions(URI, "models/once/1") or []
    assert not version.deleted
    assert list_versions(URI, "models/once/2") == list_versions(URI, "models/on") == []


def test_a_name_overwritten_or_deleted_by_somebody_shows_it_newest_first() -> None:
    store, name = open_store(URI), "models/h/1"
    store.put_named(name, b"1")
    put(b"2", name)
    forged = put(b"3", name)
    boto3.client("s3").delete_object(Bucket="locked", Key=f"team a/{name}")
    put(b"other", "models/h/10")
    assert store.get_named(name) is None
    found = list_versions(URI, name) or []
    assert [version.deleted for version in found] == [True, False, False, False]
    assert forged in {version.id for version in found}
    assert {known: len(seen) for known, seen in (list_all_versions(URI, "models/h") or {}).items()} == {
        name: 4,
        "models/h/10": 1,
    }
    assert list_all_versions(URI, "models/h/1") == {name: found}


def test_more_versions_than_one_answer_holds_are_all_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    unpaged = control.open_bucket

    def two_at_a_time(uri: str) -> tuple[str, str, Any]:
        bucket, root, client = unpaged(uri)
        event = "provide-client-params.s3.ListObjectVersions"
        client.meta.events.register(event, lambda params, **_: {**params, "MaxKeys": 2})
        return bucket, root, client

    versions = [put(str(number).encode(), "models/many/1") for number in range(5)]
    monkeypatch.setattr(control, "open_bucket", two_at_a_time)
    found = list_versions(URI, "models/many/1") or []
    assert {version.id for version in found} == set(versions)
    assert found[0].id == versions[-1]


def test_stores_without_versioning_have_no_history(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put_named(NAME, b"1")
    open_store("s3://plain").put_named(NAME, b"1")
    assert list_versions(tmp_path.as_uri(), NAME) is list_versions("s3://plain", NAME) is None
    assert not retain(tmp_path.as_uri(), NAME, 1)
    assert not retain("s3://plain", NAME, 1)


def test_a_retained_name_cannot_be_deleted_and_never_becomes_free_sooner() -> None:
    client, held = boto3.client("s3"), {"Bucket": "locked", "Key": f"team a/{NAME}"}
    open_store(URI).put_named(NAME, b"1")
    assert retain(URI, NAME, 30) and retain(URI, NAME, 1)
    (version,) = list_versions(URI, NAME) or []
    retention = client.head_object(**held)
    assert retention["ObjectLockMode"] == "GOVERNANCE"
    assert retention["ObjectLockRetainUntilDate"] > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=29)
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(**held, VersionId=version.id)
    assert retain(URI, NAME, 60)
    longer = client.head_object(**held)["ObjectLockRetainUntilDate"]
    assert longer > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=59)


def test_a_compliance_lock_of_the_bucket_is_lengthened_not_weakened() -> None:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
    boto3.client("s3").put_object(Bucket="locked", Key="team a/models/c/1", Body=b"1", **lock)
    assert retain(URI, "models/c/1", 30)
    held = boto3.client("s3").head_object(Bucket="locked", Key="team a/models/c/1")
    assert held["ObjectLockMode"] == "COMPLIANCE"
    assert held["ObjectLockRetainUntilDate"] > until


@pytest.mark.parametrize(
    ("uri", "remedy"), [(URI, "fix the role's permissions"), ("s3://nowhere-at-all", "check the bucket's name")]
)
def test_what_cannot_be_asked_is_one_clear_error(uri: str, remedy: str) -> None:
    with pytest.raises(HardcaseError, match=f"store {uri}: models/none: .*; {remedy}"):
        retain(uri, "models/none", 1)


def test_a_name_that_could_be_none_is_refused() -> None:
    for ask in (
        lambda: list_versions(URI, "../x"),
        lambda: retain(URI, "a//b", 1),
        lambda: list_versions("s3://b/../x", NAME),
    ):
        with pytest.raises(InputError):
            ask()
