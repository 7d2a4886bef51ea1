"""`hardcase source-digest`: what a source holds, for those who schedule by it."""

import json

import boto3
import pytest

from tests.support.s3 import moto_bucket

# Airflow's side tells the same of the same: dags/tests/test_bucket.py.
DIGEST = "be2f645c18999b208f4c4ff8c637fa8767dba83184ed6c9f103b7ebf3a6b0aed"
OBJECTS = {
    "march/": b"",
    "march/manifest.jsonl": b"{}\n",
    "march/images/": b"",
    "march/images/é.png": b"x",
    "march2/manifest.jsonl": b"[]\n",
}


def digest(machine, source):
    done = machine.call("source-digest", source, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["digest"]


def test_changed_folder_has_another_digest(machine, tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}\n")
    before = digest(machine, str(tmp_path))
    assert digest(machine, tmp_path.as_uri()) == digest(machine, str(tmp_path / "manifest.jsonl")) == before
    (tmp_path / "a.png").write_bytes(b"x")
    assert digest(machine, str(tmp_path)) != before


def test_several_sources_have_a_digest_that_changes_with_any_of_them(machine, tmp_path):
    for name in ("march", "april"):
        (tmp_path / name).mkdir()
    both = f"{(tmp_path / 'march').as_uri()} {(tmp_path / 'april').as_uri()}"
    before = digest(machine, both)
    (tmp_path / "april" / "a.png").write_bytes(b"x")
    assert digest(machine, both) != before != ""
    done = machine.call("source-digest", f"{both} {(tmp_path / 'may').as_uri()}")
    assert (done.returncode, "/may: it does not exist; name a folder" in done.stderr) == (2, True)


def test_changed_bucket_has_another_digest(machine):
    with moto_bucket("bucket"):
        client = boto3.client("s3")
        for key, data in OBJECTS.items():
            client.put_object(Bucket="bucket", Key=key, Body=data)
        assert digest(machine, "s3://bucket/march") == digest(machine, "s3://bucket/march/manifest.jsonl") == DIGEST
        client.put_object(Bucket="bucket", Key="march/images/é.png", Body=b"y")
        assert digest(machine, "s3://bucket/march") != DIGEST
        done = machine.call("source-digest", "s3://bucket/april")
        assert (done.returncode, "s3://bucket/april: no objects there" in done.stderr) == (2, True)


@pytest.mark.parametrize("source", ["procedural://?samples=80&seed=7", "snapshot:abc"])
def test_source_whose_uri_says_it_has_none(machine, source):
    assert digest(machine, source) == ""


def test_source_that_is_not_there_is_named(machine):
    done = machine.call("source-digest", "/no/such/folder")
    assert done.returncode == 2
    assert done.stderr.startswith("error: source /no/such/folder: it does not exist; name a folder")


def test_an_edited_manifest_behind_a_link_has_another_digest(machine, tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"id": "a"}\n')
    (source := tmp_path / "source").mkdir()
    (source / "manifest.jsonl").symlink_to("../labels.jsonl")
    before = digest(machine, str(source))
    (tmp_path / "labels.jsonl").write_text('{"id": "b"}\n')
    assert digest(machine, str(source)) != before
    (source / "own.jsonl").symlink_to("../labels.jsonl")
    named = digest(machine, str(source / "own.jsonl"))
    (tmp_path / "labels.jsonl").write_text('{"id": "c"}\n')
    assert digest(machine, str(source / "own.jsonl")) != named
