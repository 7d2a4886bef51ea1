"""The store on S3, and what an endpoint must be able to do."""

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import boto3
import pytest

from hardcase.errors import HardcaseError, InputError
from hardcase.store.conformance import check_store, require_conformance
from hardcase.store.digest import path_digest
from hardcase.store.store import open_store
from tests.support.faults import Fault, faulty_endpoint
from tests.support.s3 import moto_bucket, sloppy_endpoint

URI = "s3://models/team a/hardcase"


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[None]:
    with moto_bucket("models", versioned=True):
        yield


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HARDCASE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_objects_lie_under_the_prefix_by_their_sha256() -> None:
    store = open_store(URI + "/")
    assert store.uri == URI
    for data in (b"", b"x", bytes(range(256)) * 40_000):
        digest = store.put_object(data)
        assert digest == hashlib.sha256(data).hexdigest()
        key = f"team a/hardcase/objects/{digest[:2]}/{digest}"
        assert boto3.client("s3").get_object(Bucket="models", Key=key)["Body"].read() == data
        assert open_store(URI).get_object(digest) == data


def test_many_writers_of_one_object_write_one_version() -> None:
    data = b"y" * 10**6
    with ThreadPoolExecutor(16) as pool:
        (digest,) = set(pool.map(lambda _: open_store(URI).put_object(data), range(16)))
    key = f"team a/hardcase/objects/{digest[:2]}/{digest}"
    versions = boto3.client("s3").list_object_versions(Bucket="models", Prefix=key)["Versions"]
    assert len(versions) == 1


def test_altered_and_missing_objects_are_named() -> None:
    store, client = open_store(URI), boto3.client("s3")
    digest = store.put_object(b"right")
    key = f"team a/hardcase/objects/{digest[:2]}/{digest}"
    client.put_object(Bucket="models", Key=key, Body=b"wrong")
    with pytest.raises(HardcaseError, match=f"{digest} was altered"):
        store.get_object(digest)
    client.delete_object(Bucket="models", Key=key)
    with pytest.raises(HardcaseError, match=f"{digest} is missing"):
        store.get_object(digest)


def test_a_folder_on_s3_is_restored(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "ü 🫖.bin").write_bytes(bytes(1000))
    digest = open_store(URI).put_folder(tmp_path / "model")
    open_store(URI).get_folder(digest, tmp_path / "back")
    assert path_digest(tmp_path / "back") == digest


def test_what_was_fetched_once_is_near_and_still_verified(cache: Path) -> None:
    store, client = open_store(URI), boto3.client("s3")
    digest = store.put_object(b"far away")
    assert store.get_object(digest) == b"far away"
    client.delete_object(Bucket="models", Key=f"team a/hardcase/objects/{digest[:2]}/{digest}")
    assert open_store(URI).get_object(digest) == b"far away"
    with pytest.raises(HardcaseError, match=f"{digest} is missing"):
        store.check_object(digest)
    (cache / digest).write_bytes(b"near but wrong")
    with pytest.raises(HardcaseError, match="missing"):
        store.get_object(digest)
    store.put_object(b"far away")
    store.check_object(digest)
    assert store.get_object(digest) == b"far away"
    assert (cache / digest).read_bytes() == b"far away"


def test_many_objects_come_in_order() -> None:
    store = open_store(URI)
    data = [bytes([number]) * 10 for number in range(20)]
    assert list(store.get_objects([store.put_object(each) for each in data])) == data


def test_a_bucket_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(HardcaseError, match="s3://nowhere: cannot write objects/"):
        open_store("s3://nowhere").put_object(b"x")


def test_every_upload_carries_its_sha256_or_object_lock_would_refuse_it() -> None:
    with sloppy_endpoint() as sums:
        store, big = open_store("s3://locked/x"), bytes(6 * 2**20)
        digest = store.put_object(big)
        store.put_named("models/m/1", b"entry")
    assert sums == sums | {
        f"/locked/x/objects/{digest[:2]}/{digest}": b64encode(hashlib.sha256(big).digest()).decode(),
        "/locked/x/models/m/1": b64encode(hashlib.sha256(b"entry").digest()).decode(),
    }


@pytest.mark.parametrize("fault", get_args(Fault))
def test_writer_whose_answer_was_lost_or_in_conflict_knows_its_own_bytes(fault: Fault) -> None:
    with faulty_endpoint() as faults:
        store = open_store(URI, cached=False)
        for number in (1, 2):
            faults.arm(fault, 1)
            assert store.put_named(f"models/{fault}/{number}", b"ours")
            assert not store.put_named(f"models/{fault}/{number}", b"theirs")
            assert store.get_named(f"models/{fault}/{number}") == b"ours"
        faults.arm(fault, 1)
        assert store.get_object(store.put_object(fault.encode())) == fault.encode()
        assert faults.struck


def test_conflict_that_does_not_end_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardcase.store.store.CONFLICT_WAITS", (0, 0))
    with faulty_endpoint() as faults:
        faults.arm("409", 1, times=100)
        with pytest.raises(HardcaseError, match=r"models/busy: .*ConditionalRequestConflict.*run again"):
            open_store(URI).put_named("models/busy", b"x")
        assert len(faults.writes) == 3


def test_a_large_object_that_was_altered_is_mended_by_putting_it_again() -> None:
    store, data = open_store(URI, cached=False), bytes(12 * 2**20)
    digest = store.put_object(data)
    key = f"team a/hardcase/objects/{digest[:2]}/{digest}"
    boto3.client("s3").put_object(Bucket="models", Key=key, Body=b"wrong")
    assert store.put_object(data) == digest
    assert store.get_object(digest) == data


def test_without_credentials_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        open_store("s3://models")


@pytest.mark.parametrize("place", ["s3", "files"])
def test_a_good_place_passes_every_check_and_is_left_clean(place: str, tmp_path: Path) -> None:
    uri = URI if place == "s3" else tmp_path.as_uri()
    checks = {check.name: check for check in check_store(uri)}
    require_conformance(uri, list(checks.values()))
    assert {name for name, check in checks.items() if check.required} == {
        "read after write",
        "put if absent, 16 writers",
        "listing",
        "ranges",
        "multipart",
    }
    if place == "s3":
        assert checks["versioning"].verdict == "ok"
        off = {name for name, check in checks.items() if check.verdict == "off"}
        assert off == {"object lock", "encryption", "public access block"}
        left = boto3.client("s3").list_object_versions(Bucket="models", Prefix="team a/hardcase/check")
        assert not left.keys() & {"Versions", "DeleteMarkers"}
    else:
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_endpoint_that_ignores_conditions_is_refused_and_one_that_is_busy_is_asked_again() -> None:
    with sloppy_endpoint():
        store = open_store("s3://bucket")
        assert store.get_object(store.put_object(b"x")) == b"x"
        checks = check_store("s3://bucket")
        verdicts = {check.name: check.verdict for check in checks}
        assert verdicts["read after write"] == "ok"
        assert verdicts["put if absent, 16 writers"] == verdicts["listing"] == "failed"
        with pytest.raises(InputError, match=r"fails put if absent, 16 writers \(16 of 16 writers won"):
            require_conformance("s3://bucket", checks)


def test_claims_of_a_bucket_are_checked_and_reported() -> None:
    key = "arn:aws:kms:eu-central-1:111122223333:key/1234"
    with moto_bucket("claims", object_lock=True):
        client = boto3.client("s3")
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
        client.put_bucket_encryption(Bucket="claims", ServerSideEncryptionConfiguration={"Rules": [rule]})
        blocked = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True}
        client.put_public_access_block(Bucket="claims", PublicAccessBlockConfiguration=blocked)
        checks = {check.name: check for check in check_store("s3://claims")}
        assert checks["versioning"].verdict == checks["object lock"].verdict == checks["encryption"].verdict == "ok"
        assert "cannot delete a locked version" in checks["object lock"].detail
        assert checks["encryption"].detail == f"by default aws:kms {key}"
        assert checks["public access block"].verdict == "failed"
        assert checks["public access block"].detail == "not set: RestrictPublicBuckets"
        assert not client.list_object_versions(Bucket="claims").keys() & {"Versions", "DeleteMarkers"}


def test_an_object_lock_without_effect_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_bucket("unlocked", object_lock=True):
        monkeypatch.setattr("moto.s3.models.FakeKey.is_locked", lambda *_, **__: False)
        (lock,) = (check for check in check_store("s3://unlocked") if check.name == "object lock")
        assert (lock.verdict, lock.detail) == ("failed", "a locked version was deleted")
