"""S3, by the hook of Airflow's Amazon provider: Airflow's image has it, the environment of one machine has not."""

import hashlib
import json
import logging
from typing import Any, Final

from airflow.sdk.exceptions import AirflowFailException

MANIFESTS: Final = ("manifest.jsonl", "manifest.parquet")
CONNECTION: Final = "aws_default"  # without it, boto3's own way to credentials
logger = logging.getLogger(__name__)


def digest(uri: str) -> str | None:
    """Return the digest of all objects under `uri`, as `hardcase source-digest` does; None if they cannot be listed.

    Raises:
        AirflowFailException: no objects there.
    """
    if uri.lower().endswith((".jsonl", ".parquet")):  # a manifest: its folder counts
        uri = uri.rpartition("/")[0]
    bucket_name, prefix = _split(uri)
    entries = _listed("iter_file_metadata", prefix, bucket_name)
    if entries is None:
        return None
    # A key that ends in a slash is the S3 console's mark of a folder.
    files = (each for each in entries if not each["Key"].endswith("/"))
    objects = {each["Key"].removeprefix(prefix): [each["Size"], each["ETag"]] for each in files}
    if not objects:
        raise AirflowFailException(f"source {uri}: no objects there; check the address")
    canonical = json.dumps(objects, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def newest_below(uri: str) -> str:
    """Return the last by name of the folders below that have a manifest; `uri` itself if none are seen."""
    bucket_name, prefix = _split(uri)
    for folder in sorted(_listed("list_prefixes", bucket_name, prefix, "/") or [], reverse=True):
        keys = _listed("list_keys", bucket_name, f"{folder}manifest.") or []
        if any(key == folder + name for key in keys for name in MANIFESTS):
            return f"s3://{bucket_name}/{folder.rstrip('/')}"
    return uri


def read_below(uri: str) -> dict[str, str]:
    """Return the texts directly below `uri`, by name; none where the Amazon provider is not installed."""
    bucket_name, prefix = _split(uri)
    if (hook := _hook()) is None:
        return {}
    keys = hook.list_keys(bucket_name, prefix) or []
    return {key.removeprefix(prefix): hook.read_key(key, bucket_name) for key in keys}


def _split(uri: str) -> tuple[str, str]:
    bucket_name, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
    return bucket_name, f"{prefix}/" if prefix else ""


def _hook() -> Any:
    try:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    except ImportError:
        return None
    return S3Hook(CONNECTION)


def _listed(how: str, *where: str) -> list[Any] | None:
    if (hook := _hook()) is None:
        logger.info("S3 is not looked into: apache-airflow-providers-amazon is not installed")
        return None
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return list(getattr(hook, how)(*where))
    except (BotoCoreError, ClientError) as error:
        logger.warning("S3 cannot be looked into: %s", error)
        return None
