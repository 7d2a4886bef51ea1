"""S3 by the Amazon provider's hook, which is not installed here: a stand-in with its four methods."""

import sys
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hardcase_provider.planning import newest_batch, source_digest

# The same objects have it by `hardcase source-digest`: tests/integration/cli/test_source_digest.py.
DIGEST = "be2f645c18999b208f4c4ff8c637fa8767dba83184ed6c9f103b7ebf3a6b0aed"
OBJECTS = {
    "march/": b"",
    "march/manifest.jsonl": b"{}\n",
    "march/images/": b"",
    "march/images/é.png": b"x",
    "march2/manifest.jsonl": b"[]\n",
}


class Denied(Exception):
    """botocore's."""


class Hook:
    """Methods of `airflow.providers.amazon.aws.hooks.s3.S3Hook`."""

    objects: dict[str, bytes]
    denied = False

    def __init__(self, aws_conn_id: str) -> None:
        assert aws_conn_id == "aws_default"

    def iter_file_metadata(self, prefix: str, bucket_name: str) -> list[dict[str, Any]]:
        from hashlib import md5

        self._let(bucket_name)
        return [
            {"Key": key, "Size": len(data), "ETag": f'"{md5(data, usedforsecurity=False).hexdigest()}"'}
            for key, data in self.objects.items()
            if key.startswith(prefix)
        ]

    def list_prefixes(self, bucket_name: str, prefix: str, delimiter: str) -> list[str]:
        self._let(bucket_name)
        below = [key[len(prefix) :] for key in self.objects if key.startswith(prefix)]
        return sorted({prefix + key.partition(delimiter)[0] + delimiter for key in below if delimiter in key})

    def list_keys(self, bucket_name: str, prefix: str) -> list[str]:
        self._let(bucket_name)
        return [key for key in self.objects if key.startswith(prefix)]

    def load_string(self, string_data: str, key: str, bucket_name: str, replace: bool) -> None:
        self._let(bucket_name)
        assert replace
        self.objects[key] = string_data.encode()

    def _let(self, bucket_name: str) -> None:
        assert bucket_name == "bucket"
        if self.denied:
            raise Denied("An error occurred (AccessDenied) when calling the ListObjectsV2 operation")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> type[Hook]:
    monkeypatch.setattr("hardcase_provider.planning.named_program", lambda: "")
    names = ("airflow.providers.amazon", "airflow.providers.amazon.aws", "airflow.providers.amazon.aws.hooks")
    chosen = type("S3Hook", (Hook,), {"objects": dict(OBJECTS)})
    modules = {name: ModuleType(name) for name in (*names, f"{names[-1]}.s3", "botocore", "botocore.exceptions")}
    modules[f"{names[-1]}.s3"].S3Hook = chosen  # type: ignore[attr-defined]
    for name in ("BotoCoreError", "ClientError"):
        setattr(modules["botocore.exceptions"], name, Denied)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return chosen


def test_bucket_is_told_by_keys_sizes_and_etags(hook: type[Hook]) -> None:
    before = source_digest("s3://bucket/march", "kubeflow")
    assert before == DIGEST
    assert source_digest("s3://bucket/march/", "kubeflow") == before
    assert source_digest("s3://bucket/march/manifest.jsonl", "kubeflow") == before
    hook.objects["march/images/é.png"] = b"y"
    assert source_digest("s3://bucket/march", "kubeflow") != before


def test_empty_place_is_no_source(hook: type[Hook]) -> None:
    with pytest.raises(AirflowFailException, match="source s3://bucket/april: no objects there"):
        source_digest("s3://bucket/april", "kubeflow")


def test_bucket_that_may_not_be_listed_counts_as_new(hook: type[Hook]) -> None:
    hook.denied = True
    assert source_digest("s3://bucket/march", "kubeflow") is None
    assert newest_batch("s3://bucket/batches") == "s3://bucket/batches"


def test_without_the_provider_a_bucket_is_not_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardcase_provider.planning.named_program", lambda: "")
    assert source_digest("s3://bucket/prefix", "kubeflow") is None
    assert newest_batch("s3://bucket/batch") == "s3://bucket/batch"


def test_newest_batch_of_a_bucket_is_the_last_with_a_manifest(hook: type[Hook]) -> None:
    for name in ("2026-01-01/manifest.jsonl", "2026-02-01/manifest.parquet", "2026-03-01/images/a.png", "notes.txt"):
        hook.objects[f"batches/{name}"] = b""
    assert newest_batch("s3://bucket/batches/") == "s3://bucket/batches/2026-02-01"
    assert newest_batch("s3://bucket/march") == "s3://bucket/march", "one batch, with a folder of pictures"
