"""Blocks of a source: what each process writes, and what a stopped ingest continues with."""

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hardcase.config import IngestConfig
from hardcase.data import blocks
from hardcase.data.blocks import BlockReader, map_ahead, read_details
from hardcase.data.files import open_source
from hardcase.data.scenes import write_source
from hardcase.data.source import Source
from hardcase.errors import HardcaseError
from hardcase.steps import ingest
from hardcase.store.digest import path_digest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_source(tmp_path / "source", samples=300, seed=4)
    return tmp_path / "source"


def read_with(tmp_path: Path, source: Path, shard_bytes: int) -> list[Path]:
    (tmp_path / "blocks").mkdir(exist_ok=True)
    manifest, files = open_source(str(source), tmp_path)
    reader = BlockReader(manifest, files, tmp_path / "blocks", shard_bytes, "")
    return [reader.read(block) for block in Source(manifest).list_blocks()]


def test_every_row_of_a_block_is_in_its_table_and_its_images_where_the_table_says(tmp_path: Path, source: Path) -> None:
    tables = read_with(tmp_path, source, 50_000)
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    given = [json.loads(line) for line in (source / "manifest.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in given]
    assert len(tables) == 19
    for table in tables:
        shards = read_details(table).shards
        assert len(shards) > 1
        assert all(path_digest(table.parent / shard["sha256"]) == shard["sha256"] for shard in shards)
        contents = [pq.read_table(table.parent / shard["sha256"]).to_pylist() for shard in shards]
        for row in pq.read_table(table).to_pylist():
            (named,) = (line for line in given if line["id"] == row["id"])
            stored = contents[row["shard"]][row["position"]]
            assert (stored["id"], stored["row"]) == (row["id"], row["row"])
            paths = (named["original"], *named["candidates"])
            assert [image["bytes"] for image in stored["images"]] == [(source / path).read_bytes() for path in paths]
            assert [image["phash"] is None for image in row["images"]] == [False, True, True, True, True]


def test_a_stopped_ingest_continues_with_the_blocks_it_has_not_read(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(scratch: Path) -> bytes:
        scratch.mkdir(exist_ok=True)
        manifest, store = tmp_path / "manifest", (tmp_path / "store").as_uri()
        ingest.run(str(source), store, IngestConfig(), manifest, tmp_path / "quarantine", scratch)
        return manifest.read_bytes()

    expected, scratch = run(tmp_path / "first"), tmp_path / "second"

    def fail(*_: object, **__: object) -> None:
        raise HardcaseError("out of disk")

    monkeypatch.setattr(ingest, "_merge", fail)
    with pytest.raises(HardcaseError, match="out of disk"):
        run(scratch)
    monkeypatch.undo()
    folder = scratch / "shard-1-of-1" / "written"
    (folder / "1.parquet").unlink()  # the only one that is not complete
    (folder / "1.draft").write_bytes(b"half")
    (folder / "1.shard").write_bytes(b"half")
    read = list[int]()
    monkeypatch.setattr(blocks, "Source", lambda manifest: Counting(manifest, read))
    monkeypatch.setattr(ingest, "ProcessPoolExecutor", OneProcess)
    assert run(scratch) == expected
    assert read == [1]
    assert not folder.exists()


class Counting(Source):
    def __init__(self, manifest: Path, read: list[int]) -> None:
        super().__init__(manifest)
        self.read = read

    def read_block(self, block):  # type: ignore[no-untyped-def]
        self.read.append(block.number)
        return super().read_block(block)


class OneProcess:
    """The interface of a pool of processes, in this one."""

    def __init__(self, *_: object, **__: object) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(1)

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self.pool

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


def test_work_ahead_is_bounded_and_comes_in_order() -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def work(item: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.002)
        with lock:
            at_once[0] -= 1
        return item * item

    taken = list[int]()

    def items():  # type: ignore[no-untyped-def]
        for item in range(50):
            taken.append(item)
            yield item

    results = map_ahead(work, items(), 4)
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == [item * item for item in range(1, 50)]
    assert 1 < most[0] <= 4
