"""A snapshot: what steps read of it, and that nothing altered is ever read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardcase.data.snapshot import SCHEMA, Snapshot
from hardcase.errors import HardcaseError, InputError
from hardcase.formats import NewerFormatError
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_store, parse_local_path


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


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    store, shards = open_store(str(tmp_path / "store")), []
    for split, numbers in (("train", range(1, 71)), ("train", range(71, 81)), ("eval", range(81, 91))):
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([row(number, split) for number in numbers], SCHEMA), buffer)
        data = buffer.getvalue().to_pybytes()
        shards.append({"sha256": store.put_object(data), "bytes": len(data), "rows": len(numbers), "split": split})
    content = {"schema": 1, "rows": 90, "splits": {"train": 80, "eval": 10}, "shards": shards, "unknown_keys": []}
    (tmp_path / "manifest.json").write_bytes(canonical_json(content))
    return Snapshot.open(tmp_path / "manifest.json", store.uri)


def test_samples_come_in_order_with_their_images(snapshot: Snapshot) -> None:
    train = list(snapshot.iterate("train"))
    assert [sample.id for sample in train] == [str(number) for number in range(1, 81)]
    assert (snapshot.count("train"), snapshot.count("eval")) == (80, 10)
    first = train[0]
    assert (first.truth, first.reasoning, first.group) == (frozenset("AC"), "because", "g1")
    assert [image[:3] for image in first.images] == [b"1 O", b"1 A", b"1 B", b"1 C", b"1 D"]
    assert (train[1].truth, train[2].reasoning) == (frozenset(), None)
    assert snapshot.load("train") == train


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
    digest = snapshot.manifest["shards"][2]["sha256"]
    damage(parse_local_path(str(tmp_path / "store")) / "objects" / digest[:2] / digest)
    assert len(snapshot.load("train")) == 80
    for read in (lambda: snapshot.load("eval"), snapshot.read_table):
        with pytest.raises(HardcaseError, match=digest):
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
    path.write_bytes(b'{"schema": 2}')
    with pytest.raises(NewerFormatError, match=r"manifest\.json: written by a newer hardcase \(format 2, .* up to 1\)"):
        Snapshot.open(path, str(tmp_path / "store"))
