"""A source on S3 is the source it would be in a folder."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from hardcase.config import IngestConfig
from hardcase.data.files import open_source
from hardcase.data.listing import source_digest
from hardcase.data.scenes import write_source
from hardcase.data.snapshot import RangedSamples, Samples, Snapshot
from hardcase.errors import HardcaseError, InputError
from hardcase.steps.ingest import run
from hardcase.store.digest import bytes_digest
from tests.support.s3 import moto_bucket


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "march ü"
    write_source(folder, samples=6, seed=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def bucket(folder: Path) -> Iterator[None]:
    with moto_bucket("data"):
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"team/{folder.name}/{path.relative_to(folder).as_posix()}"
                boto3.client("s3").put_object(Bucket="data", Key=key, Body=path.read_bytes())
        yield


def snapshot_of(source: str, desk: Path) -> bytes:
    (desk / "scratch").mkdir(parents=True)
    places = desk / "snapshot", desk / "quarantine", desk / "scratch"
    run(source, (desk / "store").as_uri(), IngestConfig(eval_share=0.5), *places)
    return places[0].read_bytes()


@pytest.mark.parametrize("suffix", ["", "/", "/manifest.jsonl"])
def test_the_snapshot_is_that_of_the_folder(folder: Path, tmp_path: Path, suffix: str) -> None:
    there = snapshot_of(f"s3://data/team/{folder.name}{suffix}", tmp_path / "there")
    assert there == snapshot_of(str(folder), tmp_path / "here")


def test_prefixes_and_folders_merge_into_the_snapshot_of_the_folders(folder: Path, tmp_path: Path) -> None:
    write_source(tmp_path / "april", samples=4, seed=2)
    april = (tmp_path / "april").as_uri()
    for path in filter(Path.is_file, folder.rglob("*")):
        key = f"march/{path.relative_to(folder).as_posix()}"
        boto3.client("s3").put_object(Bucket="data", Key=key, Body=path.read_bytes())
    there = snapshot_of(f"s3://data/march {april}", tmp_path / "there")
    assert there == snapshot_of(f"{folder.as_uri()} {april}", tmp_path / "here")
    assert json.loads(there)["rows"] == 6 + 4


def test_the_digest_changes_with_what_lies_there(folder: Path) -> None:
    client, uri = boto3.client("s3"), f"s3://data/team/{folder.name}"
    before = source_digest(uri)
    assert source_digest(f"{uri}/manifest.jsonl") == before
    client.put_object(Bucket="data", Key=f"team/{folder.name}/more.txt", Body=b"x")
    assert source_digest(uri) != before
    client.delete_object(Bucket="data", Key=f"team/{folder.name}/more.txt")
    assert source_digest(uri) == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://data/nothing", r"no objects there|no manifest\.jsonl"),
        ("s3://nowhere/x", "NoSuchBucket: .*; check the bucket's name"),
        ("s3://", "s3://bucket"),
    ],
)
def test_a_wrong_address_is_the_users_error(uri: str, message: str, tmp_path: Path) -> None:
    for read in (lambda: source_digest(uri), lambda: open_source(uri, tmp_path)):
        with pytest.raises(InputError, match=message):
            read()


MARKERS = ("", "images/", "a//b.png", "x/../y.png", "./z.png", "x/./y.png", "tab\t.png", "long/" + "é" * 200)


def test_keys_that_no_row_names_do_not_matter(folder: Path, tmp_path: Path) -> None:
    client, uri = boto3.client("s3"), "s3://data/marked"
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="data", Key=f"marked/{path.relative_to(folder)}", Body=path.read_bytes())
    before = source_digest(uri)
    for key in MARKERS:
        client.put_object(Bucket="data", Key=f"marked/{key}", Body=b"")
    assert source_digest(uri) != before
    assert snapshot_of(uri, tmp_path / "there") == snapshot_of(str(folder), tmp_path / "here")


def test_a_row_may_name_an_object_as_it_may_name_a_file(folder: Path, tmp_path: Path) -> None:
    """A path means on S3 what it means in a folder, and an object that is absent is the fault of its row."""
    client = boto3.client("s3")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows[0]["original"] = f".//{rows[0]['original']}"
    rows[1]["original"] = "absent.png"
    rows[2]["original"] = "a\tb.png"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    client.put_object(Bucket="data", Key="odd/manifest.jsonl", Body=(tmp_path / "odd/manifest.jsonl").read_bytes())
    for path in folder.rglob("*.*"):
        if path.suffix != ".jsonl":
            client.put_object(Bucket="data", Key=f"odd/{path.relative_to(folder)}", Body=path.read_bytes())
    desk = tmp_path / "desk"
    (desk / "scratch").mkdir(parents=True)
    places = desk / "snapshot", desk / "quarantine", desk / "scratch"
    result = run("s3://data/odd", (desk / "store").as_uri(), IngestConfig(max_bad_share=1, eval_share=0.5), *places)
    assert (result.accepted, result.quarantined) == (4, {"bad_path": 1, "missing_file": 1})


def test_a_source_and_a_store_on_s3_give_the_same_snapshot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARDCASE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scratch").mkdir()
    places = tmp_path / "snapshot", tmp_path / "quarantine", tmp_path / "scratch"
    run(f"s3://data/team/{folder.name}", "s3://data/store", IngestConfig(eval_share=0.5), *places)
    assert places[0].read_bytes() == snapshot_of(str(folder), tmp_path / "here")
    assert not list((tmp_path / "scratch").glob("**/*.parquet"))
    samples = Snapshot.open(places[0], "s3://data/store").open_samples("train")
    rows = {row["id"]: row for row in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())}
    for sample in [samples[-1], *samples]:
        row = rows[sample.id]
        assert list(sample.images) == [(folder / path).read_bytes() for path in (row["original"], *row["candidates"])]
    # A shard that another process has evicted from the cache is fetched again.
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert len(Snapshot.open(places[0], "s3://data/store").open_samples("train")[0].images) == 5


def test_a_refused_source_on_s3_leaves_no_snapshot(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    client, (refused, *others) = boto3.client("s3"), rows
    lines = [{**refused, "answer": None}, *others]
    body = "".join(json.dumps(row) + "\n" for row in lines).encode()
    client.put_object(Bucket="data", Key=f"team/{folder.name}/refused.jsonl", Body=body)
    places = tmp_path / "snapshot", tmp_path / "quarantine", tmp_path / "scratch"
    with pytest.raises(InputError, match=r"1 of 6 rows are bad \(bad_answer 1\)"):
        run(f"s3://data/team/{folder.name}/refused.jsonl", "s3://data/refused", IngestConfig(), *places)
    listed = client.list_objects_v2(Bucket="data", Prefix="refused/").get("Contents", [])
    names = [entry["Key"].rpartition("/")[2] for entry in listed]
    assert not places[0].exists()
    assert places[1].exists()
    # Shards are uploaded while the source is read. No snapshot names these, so `store gc` lists them.
    assert [
        bytes_digest(client.get_object(Bucket="data", Key=entry["Key"])["Body"].read()) for entry in listed
    ] == names


@pytest.fixture
def stored(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in a store on S3, and an empty cache."""
    places = tmp_path / "snapshot", tmp_path / "quarantine", tmp_path / "scratch"
    run(str(folder), "s3://data/ranged", IngestConfig(eval_share=0, shard_bytes=60_000), *places)
    monkeypatch.setenv("HARDCASE_CACHE", str(tmp_path / "cache"))
    return places[0]


def images_of(folder: Path) -> dict[str, list[bytes]]:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return {row["id"]: [(folder / path).read_bytes() for path in (row["original"], *row["candidates"])] for row in rows}


@pytest.mark.parametrize("gigabytes", ["20", "0.00002"])
def test_samples_on_s3_are_read_whether_or_not_the_cache_holds_them(
    folder: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: str
) -> None:
    monkeypatch.setenv("HARDCASE_CACHE_GB", gigabytes)
    samples, expected = Snapshot.open(stored, "s3://data/ranged").open_samples("train"), images_of(folder)
    assert isinstance(samples, RangedSamples) is (gigabytes != "20")
    assert {sample.id: list(sample.images) for sample in samples[::-1]} == expected
    # So are they in a forked process, as PyTorch's DataLoader has them, where obstore's threads are missing.
    again = Snapshot.open(stored, "s3://data/ranged").open_samples("train")
    for path in (tmp_path / "cache").glob("*"):
        path.unlink()
    INHERITED.append(again)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert dict(pool.map_async(read_inherited, range(len(again))).get(timeout=60)) == expected


INHERITED = list[Samples]()


def read_inherited(at: int) -> tuple[str, list[bytes]]:
    sample = INHERITED[-1][at]
    return sample.id, list(sample.images)


def test_an_altered_image_on_s3_is_never_trained_on(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_CACHE_GB", "0.00002")
    snapshot, client = Snapshot.open(stored, "s3://data/ranged"), boto3.client("s3")
    digest = snapshot.manifest["shards"][0]["sha256"]
    key = f"ranged/objects/{digest[:2]}/{digest}"
    data = bytearray(client.get_object(Bucket="data", Key=key)["Body"].read())
    data[data.index(b"IDAT") + 30] ^= 1
    client.put_object(Bucket="data", Key=key, Body=bytes(data))
    with pytest.raises(HardcaseError, match="was altered; remove it and ingest again"):
        [list(sample.images) for sample in snapshot.open_samples("train")]
