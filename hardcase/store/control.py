"""What S3 knows of a name beside its bytes, and is told by boto3: versions, Object Lock.

Names are written once, but whoever may write to a bucket may overwrite and delete in it. A versioned bucket remembers
that, and Object Lock forbids it for a time. Local files have neither.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hardcase.errors import HardcaseError
from hardcase.store.store import check_name, split_s3

# S3's own, and what an endpoint says that does not know the question.
NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NotImplemented")


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One thing that was done to a name.

    Attributes:
        id: the bucket's.
        deleted: whether it was deleted then (a delete marker), or else written.
        when: by the bucket's clock, to the second.
    """

    id: str
    deleted: bool
    when: datetime.datetime


def list_versions(uri: str, name: str) -> list[ObjectVersion] | None:
    """All that was done to a name, newest first: one version if it was written once and left alone.

    Returns:
        None where nobody remembers: local files, or a bucket whose versioning is not enabled now.

    Raises:
        HardcaseError: the bucket cannot be asked.
    """
    found = list_all_versions(uri, name)
    return None if found is None else found.get(name, [])


def list_all_versions(uri: str, prefix: str) -> dict[str, list[ObjectVersion]] | None:
    """The history of every name in the folder `prefix`, also of those that were deleted, in one go; as `history`."""
    if not uri.startswith("s3://"):
        return None
    bucket, above, client = _place(uri)
    with _asking(uri, prefix):
        if not is_versioned(client, bucket):
            return None
        found: dict[str, list[tuple[bool, ObjectVersion]]] = {}
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=above + check_name(prefix))
        for page in pages:
            for kind in ("Versions", "DeleteMarkers"):
                for seen in page.get(kind, []):
                    version = ObjectVersion(seen["VersionId"], kind == "DeleteMarkers", seen["LastModified"])
                    found.setdefault(seen["Key"].removeprefix(above), []).append((seen["IsLatest"], version))
    # Each kind comes newest first; a second may hold several.
    newest = {
        name: [version for _, version in sorted(seen, key=lambda each: (each[0], each[1].when), reverse=True)]
        for name, seen in found.items()
    }
    return {name: seen for name, seen in newest.items() if name == prefix or name.startswith(f"{prefix}/")}


def retain(uri: str, name: str, days: int) -> bool:
    """Forbid for `days` from now that the newest version of a name is deleted; what is forbidden longer stays so.

    In governance mode: only a role with `s3:BypassGovernanceRetention` can still delete it.

    Returns:
        Whether it is held; False with local files, and on a bucket without Object Lock.

    Raises:
        HardcaseError: the bucket refuses, or keeps nothing under that name.
    """
    if not uri.startswith("s3://"):
        return False
    bucket, above, client = _place(uri)
    key = above + check_name(name)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    with _asking(uri, name):
        if get_object_lock(client, bucket) is None:
            return False
        held = client.head_object(Bucket=bucket, Key=key)
        if "ObjectLockRetainUntilDate" not in held or held["ObjectLockRetainUntilDate"] < until:
            retention = {"Mode": held.get("ObjectLockMode", "GOVERNANCE"), "RetainUntilDate": until}
            client.put_object_retention(Bucket=bucket, Key=key, VersionId=held["VersionId"], Retention=retention)
    return True


def is_versioned(client: Any, bucket: str) -> bool:
    """Whether a bucket keeps what is overwritten or deleted."""
    from botocore.exceptions import ClientError

    try:
        return bool(client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled")
    except ClientError as error:
        if error.response["Error"]["Code"] == "NotImplemented":
            return False
        raise


def get_object_lock(client: Any, bucket: str) -> dict[str, Any] | None:
    """The bucket's default retention, which may be empty; None without Object Lock."""
    from botocore.exceptions import ClientError

    try:
        lock = client.get_object_lock_configuration(Bucket=bucket).get("ObjectLockConfiguration", {})
    except ClientError as error:
        if error.response["Error"]["Code"] in NO_LOCK:
            return None
        raise
    retention: dict[str, Any] = lock.get("Rule", {}).get("DefaultRetention", {})
    return retention if lock.get("ObjectLockEnabled") == "Enabled" else None


def _place(uri: str) -> tuple[str, str, Any]:
    import boto3  # not needed for local files, and slow to import

    bucket, prefix = split_s3(uri)
    return bucket, f"{prefix}/" if prefix else "", boto3.client("s3")


@contextmanager
def _asking(uri: str, name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise HardcaseError(
            f"store {uri}: {name}: {str(error)[:200]}; mend the role's rights, or the address"
        ) from error
