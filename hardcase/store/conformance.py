"""What we rely on in a store, tried out: `hardcase store check`.

An endpoint that calls itself S3-compatible may ignore `If-None-Match`, and then two writers of one manifest both
believe that theirs is kept (rclone, s3rver and Ceph's dbstore do: let sixteen writers win).
"""

import datetime
import hashlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from hardcase.errors import InputError
from hardcase.store.control import get_object_lock, is_versioned
from hardcase.store.store import open_objects, refuse_links, split_s3

WRITERS: Final = 16
CHUNK: Final = 5 * 2**20  # the least that S3 takes as a part
LOCKED: Final = 5  # minutes for which the object is locked that Object Lock is tried on
PUBLIC: Final = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
OFF: Final = "not enabled on the bucket"
Verdict = Literal["ok", "failed", "off"]


@dataclass(frozen=True, slots=True)
class Check:
    """One property.

    Attributes:
        name: of it.
        required: whether a store without it is refused.
        verdict: `off` where the place does not claim it.
        detail: what was seen.
    """

    name: str
    required: bool
    verdict: Verdict
    detail: str


def check_store(uri: str) -> list[Check]:
    """Try every property in a folder of its own below `uri`, which is removed again.

    Raises:
        InputError: the place cannot be opened.
        HardcaseError: a link leads the folder out of it.
    """
    uri, objects = open_objects(uri)
    folder = f"check/{uuid.uuid4().hex}"
    refuse_links(uri, folder)
    try:
        found = [
            _tried("read after write", lambda: _read_after_write(objects, folder)),
            _tried("put if absent, 16 writers", lambda: _one_winner(objects, folder)),
            _tried("listing", lambda: _listing(objects, folder)),
            _tried("ranges", lambda: _ranges(objects, folder)),
            _tried("multipart", lambda: _multipart(objects, folder)),
        ]
        return found + (_claims(uri, folder) if uri.startswith("s3://") else [])
    finally:
        _remove(objects, uri, folder)


def require_conformance(uri: str, checks: list[Check]) -> None:
    """Refuse a place that fails what is required.

    Raises:
        InputError: it does.
    """
    if failed := [f"{check.name} ({check.detail})" for check in checks if check.required and check.verdict != "ok"]:
        raise InputError(f"store {uri}: fails {'; '.join(failed)}; use AWS S3, or an endpoint that passes")


def _tried(name: str, work: Callable[[], str], *, required: bool = True) -> Check:
    try:
        return Check(name, required, "ok", work())
    except (BaseError, OSError, AssertionError) as error:
        return Check(name, required, "failed", " ".join(str(error).split())[:200] or type(error).__name__)


def _read_after_write(objects: ObjectStore, folder: str) -> str:
    for number in range(8):
        data = bytes([number]) * 1000
        obstore.put(objects, f"{folder}/raw", data)
        assert bytes(obstore.get(objects, f"{folder}/raw").bytes()) == data, f"write {number} was not read back"
    return "8 of 8 writes read back at once"


def _one_winner(objects: ObjectStore, folder: str) -> str:
    def write(number: int) -> bool:
        try:
            obstore.put(objects, f"{folder}/race", str(number).encode(), mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [number for number, first in enumerate(pool.map(write, range(WRITERS))) if first]
    assert len(won) == 1, f"{len(won)} of {WRITERS} writers won"
    kept = bytes(obstore.get(objects, f"{folder}/race").bytes())
    assert kept == str(won[0]).encode(), "what is kept is not the winner's"
    return f"one of {WRITERS} won"


def _listing(objects: ObjectStore, folder: str) -> str:
    names = {f"{folder}/list/{number:02}" for number in range(20)}
    for name in names:
        obstore.put(objects, name, b"x")
    seen = {entry["path"] for batch in obstore.list(objects, prefix=f"{folder}/list") for entry in batch}
    assert seen == names, f"{len(seen)} of {len(names)} new objects listed"
    return f"{len(names)} of {len(names)} new objects listed at once"


def _ranges(objects: ObjectStore, folder: str) -> str:
    data = bytes(range(256)) * 40
    obstore.put(objects, f"{folder}/range", data)
    for start, end in ((0, 1), (255, 257), (5000, len(data))):
        got = bytes(obstore.get_range(objects, f"{folder}/range", start=start, end=end))
        assert got == data[start:end], f"bytes {start} to {end} are others"
    return "first, middle and last bytes"


def _multipart(objects: ObjectStore, folder: str) -> str:
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(64)) * (CHUNK // 1024)
    obstore.put(objects, f"{folder}/parts", data, use_multipart=True, chunk_size=CHUNK)
    assert bytes(obstore.get(objects, f"{folder}/parts").bytes()) == data, "what is read back differs"
    return f"{len(data) // 2**20} MiB in {-(-len(data) // CHUNK)} parts"


def _claims(uri: str, folder: str) -> list[Check]:
    """What boto3 is asked for; what the bucket claims to do is tried."""
    import boto3

    bucket, prefix = split_s3(uri)
    client: Any = boto3.client("s3")
    key = f"{prefix}/{folder}".lstrip("/")

    def checksums() -> str:
        try:
            client.put_object(Bucket=bucket, Key=f"{key}/sum", Body=b"x", ChecksumSHA256="A" * 43 + "=")
        except _client_errors():
            return "a wrong sha256 is refused"
        raise AssertionError("a wrong sha256 is taken")

    def versions() -> str:
        if not is_versioned(client, bucket):
            return ""
        first, second = (client.put_object(Bucket=bucket, Key=f"{key}/v", Body=body) for body in (b"1", b"2"))
        old = client.get_object(Bucket=bucket, Key=f"{key}/v", VersionId=first["VersionId"])["Body"].read()
        assert old == b"1" and first["VersionId"] != second["VersionId"], "an overwritten version is lost"
        return "an overwritten version is still there"

    def lock() -> str:
        if (default := get_object_lock(client, bucket)) is None:
            return ""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=LOCKED)
        held = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until, "ChecksumAlgorithm": "SHA256"}
        version = client.put_object(Bucket=bucket, Key=f"{key}/lock", Body=b"x", **held)["VersionId"]
        try:
            client.delete_object(Bucket=bucket, Key=f"{key}/lock", VersionId=version)
        except _client_errors():
            client.head_object(Bucket=bucket, Key=f"{key}/lock", VersionId=version)
            return f"this role cannot delete a locked version; by default {default or 'nothing is locked'}"
        raise AssertionError("a locked version was deleted")

    def encryption() -> str:
        rules = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        default = rules[0]["ApplyServerSideEncryptionByDefault"]
        return " ".join(("by default", default["SSEAlgorithm"], default.get("KMSMasterKeyID", ""))).strip()

    def privacy() -> str:
        blocked = client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        unset = [kind for kind in PUBLIC if not blocked.get(kind)]
        assert not unset, f"not set: {', '.join(unset)}"
        return f"all {len(PUBLIC)} are set"

    return [
        _claimed("checksums", checksums),
        _claimed("versioning", versions),
        _claimed("object lock", lock),
        _claimed("encryption", encryption),
        _claimed("public access block", privacy),
    ]


def _claimed(name: str, work: Callable[[], str]) -> Check:
    strange: tuple[type[Exception], ...] = (LookupError, *_client_errors())  # some answer what S3 never would
    try:
        found = _tried(name, work, required=False)
    except strange as error:
        code = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
        unset = code.endswith(("NotFoundError", "NoSuchPublicAccessBlockConfiguration"))
        return Check(name, False, "off", OFF if unset else f"cannot be seen: {code}")
    return found if found.detail else Check(name, False, "off", OFF)


def _client_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def _remove(objects: ObjectStore, uri: str, folder: str) -> None:
    for batch in obstore.list(objects, prefix=folder):
        obstore.delete(objects, [entry["path"] for entry in batch])
    if uri.startswith("s3://"):
        with suppress(*_client_errors()):
            _remove_versions(*split_s3(uri), folder)


def _remove_versions(bucket: str, prefix: str, folder: str) -> None:
    """What a versioned bucket keeps of it all; where the role may not, it is left to the bucket's lifecycle."""
    import boto3

    client: Any = boto3.client("s3")
    key = f"{prefix}/{folder}/".lstrip("/")
    for more in ({}, {"BypassGovernanceRetention": True}):  # asking for that without the right to is refused
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
            left = page.get("Versions", []) + page.get("DeleteMarkers", [])
            named = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in left]
            if named:
                client.delete_objects(Bucket=bucket, Delete={"Objects": named, "Quiet": True}, **more)
