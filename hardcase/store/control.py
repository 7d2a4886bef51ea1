"""List versions and set retention on S3 with boto3.

Names are written once, but a role that can write to a bucket can also overwrite and delete. A versioned bucket records
that, and Object Lock forbids it for a time. Local files have neither.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from hardcase.errors import UnavailableError
from hardcase.store.location import split_s3
from hardcase.store.s3_errors import describe_error
from hardcase.store.store import check_name

CLIENT_ERRORS: Final = (BotoCoreError, ClientError)
# Error codes of S3 without Object Lock, and of endpoints that do not implement the request.
NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NotImplemented")


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """Hold one version of a name."""

    id: str  # of the version in the bucket
    deleted: bool  # whether it is a delete marker
    when: datetime.datetime  # by the bucket's clock, to the second


def list_all_versions(uri: str, prefix: str) -> dict[str, list[ObjectVersion]] | None:
    """List the versions of every name in the folder `prefix`, deleted ones included, newest first.

    A name that was written once and not changed since has one. Without a history, on local files or on a bucket whose
    versioning is not enabled, the result is None.
    """
    if not uri.startswith("s3://"):
        return None
    bucket, root, client = open_bucket(uri)
    with _report_errors(uri, prefix):
        if not is_versioned(client, bucket):
            return None
        by_name: dict[str, list[tuple[bool, ObjectVersion]]] = {}
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=root + check_name(prefix))
        for page in pages:
            for kind in ("Versions", "DeleteMarkers"):
                for entry in page.get(kind, []):
                    version = ObjectVersion(entry["VersionId"], kind == "DeleteMarkers", entry["LastModified"])
                    by_name.setdefault(entry["Key"].removeprefix(root), []).append((entry["IsLatest"], version))
    # S3 lists each kind newest first. The sort is stable, so versions of the same second keep that order.
    return {
        name: [version for _, version in sorted(versions, key=lambda entry: (entry[0], entry[1].when), reverse=True)]
        for name, versions in by_name.items()
        if name == prefix or name.startswith(f"{prefix}/")
    }


def retain(uri: str, name: str, days: int) -> bool:
    """Retain the newest version of a name for `days` from now, unless it is retained longer already.

    The mode is governance: a role with `s3:BypassGovernanceRetention` can still delete the version. Return whether it
    is retained, which local files and a bucket without Object Lock cannot do.
    """
    if not uri.startswith("s3://"):
        return False
    bucket, root, client = open_bucket(uri)
    key = root + check_name(name)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    with _report_errors(uri, name):
        if get_object_lock(client, bucket) is None:
            return False
        head = client.head_object(Bucket=bucket, Key=key)
        if "ObjectLockRetainUntilDate" not in head or head["ObjectLockRetainUntilDate"] < until:
            retention = {"Mode": head.get("ObjectLockMode", "GOVERNANCE"), "RetainUntilDate": until}
            client.put_object_retention(Bucket=bucket, Key=key, VersionId=head["VersionId"], Retention=retention)
    return True


def is_versioned(client: Any, bucket: str) -> bool:
    """Return whether a bucket keeps overwritten and deleted versions."""
    try:
        return bool(client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled")
    except ClientError as error:
        if error.response["Error"]["Code"] == "NotImplemented":
            return False
        raise


def get_object_lock(client: Any, bucket: str) -> dict[str, Any] | None:
    """Return the bucket's default retention, which may be empty, or None without Object Lock."""
    try:
        lock = client.get_object_lock_configuration(Bucket=bucket).get("ObjectLockConfiguration", {})
    except ClientError as error:
        if error.response["Error"]["Code"] in NO_LOCK:
            return None
        raise
    retention: dict[str, Any] = lock.get("Rule", {}).get("DefaultRetention", {})
    return retention if lock.get("ObjectLockEnabled") == "Enabled" else None


def open_bucket(uri: str) -> tuple[str, str, Any]:
    """Return the bucket of an S3 store, the prefix of its names, and a client."""
    import boto3  # not needed for local files, and slow to import

    bucket, prefix = split_s3(uri)
    return bucket, f"{prefix}/" if prefix else "", boto3.client("s3")


@contextmanager
def _report_errors(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except CLIENT_ERRORS as error:
        remedy = "fix the role's permissions, or the address"
        raise UnavailableError(f"store {uri}: {name}: {describe_error(error, remedy)}") from error
