"""The pipeline with its store on S3, as `--store` gives it, and `hardcase store check`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from PIL import Image

from tests.support.faults import faulty_endpoint
from tests.support.machine import Machine
from tests.support.s3 import moto_bucket, sloppy_endpoint


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[None]:
    with moto_bucket("artifacts", object_lock=True):
        yield


def test_the_whole_pipeline_keeps_its_objects_on_s3(machine: Machine, tmp_path: Path) -> None:
    summary = machine.run("--store", "s3://artifacts/hardcase", "--set", "register.retention_days=2")
    client = boto3.client("s3")
    names = {entry["Key"] for entry in client.list_objects_v2(Bucket="artifacts")["Contents"]}
    assert {name.split("/")[1] for name in names} == {"objects", "models", "keys", "notes", "runs"}
    digest = summary["model"]["digest"]
    assert f"hardcase/objects/{digest[:2]}/{digest}" in names
    key = f"hardcase/objects/{summary['snapshot'][:2]}/{summary['snapshot']}"
    manifest = json.loads(client.get_object(Bucket="artifacts", Key=key)["Body"].read())
    shards = {f"hardcase/objects/{shard['sha256'][:2]}/{shard['sha256']}" for shard in manifest["shards"]}
    assert shards < names
    assert not (machine.home / "store").exists()
    again = machine.run("--store", "s3://artifacts/hardcase", "--set", "register.retention_days=2")
    assert all(step["cached"] for step in again["steps"].values())
    pictures = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(pictures):
        Image.linear_gradient("L").rotate(90 * number).save(path)
    model = f"image-screener@{summary['model']['alias']}"
    done = machine.call("screen", "--model", model, *map(str, pictures), "--json")
    assert (done.returncode, "every answer is invalid" in done.stderr) == (1, True), "the profile smoke learns nothing"
    assert len(json.loads(done.stdout)) == 4
    done = machine.call("audit", "image-screener:1", "--json")
    assert json.loads(done.stdout)["broken"] == []
    for name in ("ledger/000001.dsse.json", "1/README.md"):
        key = f"hardcase/models/image-screener/{name}"
        assert client.head_object(Bucket="artifacts", Key=key)["ObjectLockMode"] == "GOVERNANCE"
    entry = client.get_object(Bucket="artifacts", Key=key)["Body"].read()
    client.put_object(Bucket="artifacts", Key=key, Body=entry)
    done = machine.call("audit", "image-screener:1")
    assert done.returncode == 1
    assert "models/image-screener/1/README.md: written or deleted 2 times" in done.stderr


def test_a_run_whose_every_write_loses_its_answer_ends_like_any_other(machine: Machine, tmp_path: Path) -> None:
    """S3 answers 500, or 409, or cuts the line, in turn, at the first write of every key."""
    undisturbed = Machine(tmp_path / "undisturbed" / "home")
    undisturbed.home.mkdir(parents=True)
    expected = undisturbed.run("--store", "s3://artifacts/undisturbed")
    with faulty_endpoint() as faults:
        faults.arm_each()
        summary = machine.run("--store", "s3://artifacts/disturbed")
    assert len(set(faults.writes)) > 200
    assert summary["error"] is None
    parts = ("snapshot", "scores", "drift", "gate", "model")
    assert {part: summary[part] for part in parts} == {part: expected[part] for part in parts}
    assert machine.call("audit", "image-screener:1", "--store", "s3://artifacts/disturbed").returncode == 0
    assert list_kinds("disturbed") == list_kinds("undisturbed")


def list_kinds(prefix: str) -> Counter[str]:
    """Return how many names there are of each kind: objects, entries of the ledger, files of a dossier, records."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="artifacts", Prefix=f"{prefix}/")
    names = [entry["Key"].split("/") for page in pages for entry in page["Contents"]]
    return Counter("/".join(name[1:4] if name[1] == "models" else name[1:2]) for name in names)


def test_store_check_says_what_a_place_can_do_and_refuses_one_that_cannot(machine: Machine, tmp_path: Path) -> None:
    done = machine.call("store", "check", "s3://artifacts/check", "--json")
    assert done.returncode == 0, done.stderr
    assert {check["verdict"] for check in json.loads(done.stdout)["checks"] if check["required"]} == {"ok"}
    done = machine.call("store", "check", str(tmp_path))
    assert done.returncode == 0
    assert "one of 16 won" in done.stdout
    with sloppy_endpoint():
        done = machine.call("store", "check", "s3://bucket")
    assert done.returncode == 2
    assert "16 of 16 writers won" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "use AWS S3, or an endpoint that passes" in done.stderr
