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
    """Of all that lies under `uri`: key, size and ETag, as `hardcase source-digest` says it; None if it cannot be seen.

    Raises:
        AirflowFailException: no objects there.
    """
    if uri.lower().endswith((".jsonl", ".parquet")):  # a manifest: its folder counts
        uri = uri.rpartition("/")[0]
    place, prefix = _split(uri)
    entries = _listed("iter_file_metadata", prefix, place)
    if entries is None:
        return None
    found = {each["Key"].removeprefix(prefix).rstrip("/"): [each["Size"], each["ETag"]] for each in entries}
    if not found:
        raise AirflowFailException(f"source {uri}: no objects there; check the address")
    canonical = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def newest_below(uri: str) -> str:
    """The last by name of the folders below that have a manifest; `uri` itself if none are seen."""
    place, prefix = _split(uri)
    for folder in sorted(_listed("list_prefixes", place, prefix, "/") or [], reverse=True):
        keys = _listed("list_keys", place, f"{folder}manifest.") or []
        if any(key == folder + name for key in keys for name in MANIFESTS):
            return f"s3://{place}/{folder.rstrip('/')}"
    return uri


def read_below(uri: str) -> dict[str, str]:
    """Return the texts directly below `uri`, by name; none where the Amazon provider is not installed."""
    place, prefix = _split(uri)
    if (hook := _hook()) is None:
        return {}
    keys = hook.list_keys(place, prefix) or []
    return {key.removeprefix(prefix): hook.read_key(key, place) for key in keys}


def _split(uri: str) -> tuple[str, str]:
    place, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
    return place, f"{prefix}/" if prefix else ""


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
