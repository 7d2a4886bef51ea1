"""A snapshot: what steps read of it, and that nothing altered is ever read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hardcase.data.snapshot import Snapshot
from hardcase.errors import HardcaseError, InputError
from hardcase.formats import NewerFormatError
from hardcase.store.digest import bytes_digest
from tests.support.snapshots import write_snapshot


def row(number: int, split: str) -> dict[str, Any]:
    images = [
        {
            "bytes": f"{number} {name}".encode() * 500,
            "sha256": "0" * 64,
            "format": "PNG",
            "width": 32,
            "height": 24,
            "phash": "0" * 16,
            "mean": 1.5,
            "std": 0.5,
        }
        for name in "OABCD"
    ]
    return {
        "id": f"{number}",
        "row": number,
        "aspect": "physical_shadow",
        "answer": ["A", "C"] if number % 2 else [],
        "reasoning": "because" if number % 3 else None,
        "split": split,
        "group": f"g{number}",
        "images": images,
    }


@pytest.fixture(params=[1, 2])
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshot:
    rows = [row(number, "train" if number <= 80 else "eval") for number in range(1, 91)]
    return Snapshot.open(write_snapshot(tmp_path, rows, written=request.param), str(tmp_path / "store"))


def test_samples_come_in_order_with_their_images(snapshot: Snapshot) -> None:
    train = snapshot.open_samples("train", reasoning=True)
    assert [sample.id for sample in train] == [str(number) for number in range(1, 81)]
    assert (snapshot.count("train"), snapshot.count("eval")) == (80, 10)
    first = train[0]
    assert (first.truth, first.reasoning, first.group) == (frozenset("AC"), "because", "g1")
    assert first.sizes == ((32, 24),) * 5
    assert (train[1].truth, train[2].reasoning) == (frozenset(), None)
    for samples in (train, snapshot.open_samples("eval")):
        for at in random.Random(0).choices(range(len(samples)), k=2 * len(samples)):  # in any order, again and again
            sample = samples[at]
            assert list(sample.images) == [f"{sample.id} {name}".encode() * 500 for name in "OABCD"]


def test_samples_are_a_sequence_and_so_are_parts_of_them(snapshot: Snapshot) -> None:
    train = snapshot.open_samples("train", reasoning=True)
    ids = [str(number) for number in range(1, 81)]
    assert [sample.id for sample in train[7:60:3]] == ids[7:60:3]
    assert (train[-1].id, train[-1].images[0][:4]) == ("80", b"80 O")
    with pytest.raises(IndexError):
        train[80]
    annotated = train.select_annotated()
    assert annotated.read_column("id") == [id for id in ids if int(id) % 3]
    assert [sample.images[1][: len(sample.id)].decode() for sample in annotated[5:9]] == annotated[5:9].read_column(
        "id"
    )


def test_only_those_who_ask_hold_the_chains_of_thought(snapshot: Snapshot) -> None:
    assert "reasoning" not in snapshot.open_samples("train").table.column_names


def test_labels_are_read_without_opening_a_shard(snapshot: Snapshot, tmp_path: Path) -> None:
    if snapshot.manifest["schema"] == 2:  # the first format has no index
        for shard in snapshot.manifest["shards"]:
            object_path(tmp_path, shard["sha256"]).unlink()
    labels = snapshot.read_labels("eval")
    assert labels[0] == {"id": "81", "aspect": "physical_shadow", "answer": ["A", "C"], "group": "g81"}
    assert snapshot.open_samples("eval").select_shard("2/3", 1)[0] == 3


def object_path(folder: Path, digest: str) -> Path:
    return folder / "store" / "objects" / digest[:2] / digest


def test_the_table_holds_all_facts_and_no_image(snapshot: Snapshot) -> None:
    table = snapshot.read_table()
    assert table.num_rows == 90
    assert table.nbytes < 100_000
    assert "bytes" not in [field.name for field in table.schema.field("images").type.value_type]
    assert table.column("split").to_pylist() == ["train"] * 80 + ["eval"] * 10


def test_the_id_is_the_sha256_of_the_manifest(snapshot: Snapshot, tmp_path: Path) -> None:
    assert snapshot.id == bytes_digest((tmp_path / "manifest.json").read_bytes())


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9] + b"x" * 9), Path.unlink])
def test_altered_or_missing_shards_are_never_read(
    snapshot: Snapshot, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    digest = snapshot.manifest["shards"][-1]["sha256"]
    train = snapshot.open_samples("train")
    damage(object_path(tmp_path, digest))
    assert train[69].images[0]
    with pytest.raises(HardcaseError, match=digest):
        snapshot.open_samples("eval")[9].images[0]


def test_an_altered_index_is_never_read(tmp_path: Path) -> None:
    snapshot = Snapshot.open(write_snapshot(tmp_path, [row(1, "train")]), str(tmp_path / "store"))
    path = object_path(tmp_path, snapshot.manifest["index"]["sha256"])
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    for read in (lambda: snapshot.open_samples("train"), lambda: snapshot.read_labels("train"), snapshot.read_table):
        with pytest.raises(HardcaseError, match="was altered"):
            read()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"schema": 0}', json.dumps("x").encode(), None])
def test_an_invalid_manifest_is_one_clear_error(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "manifest.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match="not a snapshot manifest"):
        Snapshot.open(path, str(tmp_path / "store"))


def test_manifest_of_a_newer_hardcase_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(b'{"schema": 3}')
    with pytest.raises(NewerFormatError, match=r"manifest\.json: written by a newer hardcase \(format 3, .* up to 2\)"):
        Snapshot.open(path, str(tmp_path / "store"))


def test_memory_of_samples_is_that_of_their_labels(tmp_path: Path) -> None:
    rows = [row(number, "train") for number in range(1, 501)]
    manifest = write_snapshot(tmp_path, rows, shard_rows=50)
    assert sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()) > 4_000_000
    samples = Snapshot.open(manifest, str(tmp_path / "store")).open_samples("train")
    assert samples.table.nbytes < 250 * len(rows)
    before = pa.total_allocated_bytes()
    for sample in samples:
        assert len(sample.images[2]) > 1000
    assert pa.total_allocated_bytes() - before < 1_000_000  # the last images, and the metadata of open shards
