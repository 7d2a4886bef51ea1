"""Verify that an object store supports what hardcase needs: `hardcase store check`.

An S3-compatible endpoint may ignore `If-None-Match`. Then two writers of one manifest both believe that theirs is
stored. With rclone, s3rver and Ceph's dbstore all sixteen writers of the check win.
"""

import datetime
import hashlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from hardcase.errors import InputError
from hardcase.store.control import CLIENT_ERRORS, get_object_lock, is_versioned, open_bucket
from hardcase.store.location import open_objects, refuse_links
from hardcase.store.s3_errors import describe_error

WRITERS: Final = 16
CHUNK: Final = 5 * 2**20  # the smallest part of an upload that S3 accepts
LOCKED: Final = 5  # minutes of retention of the object that tests Object Lock
PUBLIC: Final = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
OFF: Final = "not enabled on the bucket"


class CheckFailed(Exception):
    """A property that the store lacks."""


@dataclass(frozen=True, slots=True)
class Check:
    """Hold the result for one property."""

    name: str
    required: bool  # whether a store without it is refused
    verdict: Literal["ok", "failed", "off"]  # `off` where the store does not claim it
    detail: str


def check_store(uri: str) -> list[Check]:
    """Check every property in a new folder below `uri`, which is removed afterwards."""
    uri, objects = open_objects(uri)
    folder = f"check/{uuid.uuid4().hex}"
    refuse_links(uri, folder)
    try:
        checks = [
            _check("read after write", lambda: _check_read_after_write(objects, folder)),
            _check("put if absent, 16 writers", lambda: _check_single_winner(objects, folder)),
            _check("listing", lambda: _check_listing(objects, folder)),
            _check("ranges", lambda: _check_ranges(objects, folder)),
            _check("multipart", lambda: _check_multipart(objects, folder)),
        ]
        return checks + (_check_claims(uri, folder) if uri.startswith("s3://") else [])
    finally:
        with suppress(BaseError, OSError, *CLIENT_ERRORS):  # a check has failed for the same reason
            _remove(objects, uri, folder)


def require_conformance(uri: str, checks: list[Check]) -> None:
    """Raise `InputError` if a required check failed."""
    if failed := [f"{check.name} ({check.detail})" for check in checks if check.required and check.verdict != "ok"]:
        raise InputError(f"store {uri}: fails {'; '.join(failed)}; use AWS S3, or an endpoint that passes")


def _check(name: str, work: Callable[[], str], *, required: bool = True) -> Check:
    """Check one property; `work` returns no text where the bucket does not claim to have it."""
    try:
        detail = work()
    except (BaseError, OSError, CheckFailed) as error:
        return Check(name, required, "failed", describe_error(error))
    except (LookupError, *CLIENT_ERRORS) as error:  # some responses lack fields of S3's
        code = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
        unset = code.endswith(("NotFoundError", "NoSuchPublicAccessBlockConfiguration"))
        return Check(name, required, "off", OFF if unset else f"cannot be queried: {code}")
    return Check(name, required, "ok" if detail else "off", detail or OFF)


def _require(met: bool, failure: str) -> None:
    if not met:
        raise CheckFailed(failure)


def _check_read_after_write(objects: ObjectStore, folder: str) -> str:
    for number in range(8):
        data = bytes([number]) * 1000
        obstore.put(objects, f"{folder}/raw", data)
        _require(bytes(obstore.get(objects, f"{folder}/raw").bytes()) == data, f"write {number} was not read back")
    return "8 of 8 writes read back at once"


def _check_single_winner(objects: ObjectStore, folder: str) -> str:
    def write(number: int) -> bool:
        try:
            obstore.put(objects, f"{folder}/race", str(number).encode(), mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        won = {number for number, first in enumerate(pool.map(write, range(WRITERS))) if first}
    _require(len(won) < 2, f"{len(won)} of {WRITERS} writers won")
    # The answer to the writer that won may have been lost.
    stored = bytes(obstore.get(objects, f"{folder}/race").bytes())
    _require(
        stored in [str(number).encode() for number in won or range(WRITERS)], "the stored object is not the winner's"
    )
    return f"one of {WRITERS} won"


def _check_listing(objects: ObjectStore, folder: str) -> str:
    names = {f"{folder}/list/{number:02}" for number in range(20)}
    for name in names:
        obstore.put(objects, name, b"x")
    listed = {entry["path"] for batch in obstore.list(objects, prefix=f"{folder}/list") for entry in batch}
    _require(listed == names, f"{len(listed)} of {len(names)} new objects listed")
    return f"{len(names)} of {len(names)} new objects listed at once"


def _check_ranges(objects: ObjectStore, folder: str) -> str:
    data = bytes(range(256)) * 40
    obstore.put(objects, f"{folder}/range", data)
    for start, end in ((0, 1), (255, 257), (5000, len(data))):
        data_range = bytes(obstore.get_range(objects, f"{folder}/range", start=start, end=end))
        _require(data_range == data[start:end], f"bytes {start} to {end} differ")
    return "first, middle and last bytes"


def _check_multipart(objects: ObjectStore, folder: str) -> str:
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(64)) * (CHUNK // 1024)
    obstore.put(objects, f"{folder}/parts", data, use_multipart=True, chunk_size=CHUNK)
    _require(bytes(obstore.get(objects, f"{folder}/parts").bytes()) == data, "the object read back differs")
    return f"{len(data) // 2**20} MiB in {-(-len(data) // CHUNK)} parts"


def _check_claims(uri: str, folder: str) -> list[Check]:
    """Check with boto3 the features that the bucket claims to have."""
    bucket, root, client = open_bucket(uri)
    key = root + folder

    def checksums() -> str:
        try:
            client.put_object(Bucket=bucket, Key=f"{key}/sum", Body=b"x", ChecksumSHA256="A" * 43 + "=")
        except CLIENT_ERRORS:
            return "a wrong sha256 is refused"
        raise CheckFailed("a wrong sha256 is accepted")

    def versions() -> str:
        if not is_versioned(client, bucket):
            return ""
        first, second = (client.put_object(Bucket=bucket, Key=f"{key}/v", Body=body) for body in (b"1", b"2"))
        old = client.get_object(Bucket=bucket, Key=f"{key}/v", VersionId=first["VersionId"])["Body"].read()
        _require(old == b"1" and first["VersionId"] != second["VersionId"], "an overwritten version is lost")
        return "an overwritten version is still there"

    def lock() -> str:
        if (default := get_object_lock(client, bucket)) is None:
            return ""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=LOCKED)
        retention = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until, "ChecksumAlgorithm": "SHA256"}
        version = client.put_object(Bucket=bucket, Key=f"{key}/lock", Body=b"x", **retention)["VersionId"]
        try:
            client.delete_object(Bucket=bucket, Key=f"{key}/lock", VersionId=version)
        except CLIENT_ERRORS:
            client.head_object(Bucket=bucket, Key=f"{key}/lock", VersionId=version)
            return f"this role cannot delete a locked version; by default {default or 'nothing is locked'}"
        raise CheckFailed("a locked version was deleted")

    def encryption() -> str:
        rules = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        default = rules[0]["ApplyServerSideEncryptionByDefault"]
        return " ".join(("by default", default["SSEAlgorithm"], default.get("KMSMasterKeyID", ""))).strip()

    def privacy() -> str:
        blocked = client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        unset = [kind for kind in PUBLIC if not blocked.get(kind)]
        _require(not unset, f"not set: {', '.join(unset)}")
        return f"all {len(PUBLIC)} are set"

    return [
        _check("checksums", checksums, required=False),
        _check("versioning", versions, required=False),
        _check("object lock", lock, required=False),
        _check("encryption", encryption, required=False),
        _check("public access block", privacy, required=False),
    ]


def _remove(objects: ObjectStore, uri: str, folder: str) -> None:
    for batch in obstore.list(objects, prefix=folder):
        obstore.delete(objects, [entry["path"] for entry in batch])
    if not uri.startswith("s3://"):
        return
    bucket, root, client = open_bucket(uri)
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=f"{root}{folder}/")
    with suppress(*CLIENT_ERRORS):  # where the role may not, the bucket's lifecycle removes versions
        for options in ({}, {"BypassGovernanceRetention": True}):  # the second is refused without its permission
            for page in pages:
                versions = page.get("Versions", []) + page.get("DeleteMarkers", [])
                if ids := [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in versions]:
                    client.delete_objects(Bucket=bucket, Delete={"Objects": ids, "Quiet": True}, **options)
