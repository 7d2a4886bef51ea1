"""Read blocks of a source: rows are checked, images decoded and measured, and both written into files.

Images go into shards, Parquet files that the snapshot consists of. All else of the rows goes into a small table beside
them. A block's files follow from its rows alone, and the table is written last. So a stopped ingest continues with the
blocks that have none.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pandas as pd  # noqa: F401 — pyarrow imports it when first used, which every worker would pay for
import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.data.files import BadPath, Files, RemoteFiles
from hardcase.data.images import BadImage
from hardcase.data.measure import ImageStats, measure_image
from hardcase.data.near import make_thumbnail
from hardcase.data.quarantine import BadRow, Reason
from hardcase.data.snapshot import FIELDS, SHARD, STATS
from hardcase.data.source import Block, Row, Source
from hardcase.store.digest import path_digest
from hardcase.store.store import open_store, sync

# A row of a source: of a valid one all but the last two, of a quarantined one these and `row` and `id`.
ROWS: Final = pa.schema(
    [
        *FIELDS,
        ("images", pa.list_(STATS)),
        ("thumbnail", pa.binary()),  # of the original
        ("shard", pa.int32()),  # counted from 0 in the block
        ("position", pa.int32()),  # in the shard
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
GROUP_BYTES: Final = 2**20  # of images in a row group, the least that is read of a shard
AHEAD: Final = 8  # rows that are fetched from S3 at once
DETAILS: Final = b"hardcase"
Item = TypeVar("Item")
Result = TypeVar("Result")


class BlockDetails(NamedTuple):
    """What is known of a block besides its rows."""

    shards: list[dict[str, Any]]  # sha256, bytes, rows
    unknown_keys: list[str]
    split_named: bool
    group_named: bool


class BlockReader(NamedTuple):
    """Read the blocks of one manifest in any process; each has a table in `folder`."""

    manifest: Path
    files: Files
    folder: Path
    shard_bytes: int
    store: str  # where shards are uploaded at once; empty where they stay in `folder` until the source is accepted
    # Of the manifests before this one, and what makes the ids of this one differ from theirs.
    blocks_before: int = 0
    rows_before: int = 0
    prefix: str = ""

    def read(self, block: Block) -> Path:
        """Write the table and the shards of a block, unless an earlier process did, and return the table's path."""
        number = self.blocks_before + block.number
        table = self.folder / f"{number}.parquet"
        if not table.exists():
            source, shards = Source(self.manifest), _Shards(self, number)
            ahead = AHEAD if isinstance(self.files, RemoteFiles) else 0
            rows = map_ahead(self._fetch, map(self._number, source.read_block(block)), ahead)
            written = [self._measure(row, contents, shards) for row, contents in rows]
            shards.close()
            details = BlockDetails(shards.written, sorted(source.unknown_keys), source.split_named, source.group_named)
            schema = ROWS.with_metadata({DETAILS: json.dumps(details._asdict())})
            draft = table.with_suffix(".draft")
            pq.write_table(pa.Table.from_pylist(written, schema), draft)
            sync(draft).replace(table)
        return table

    def _number(self, row: Row | BadRow) -> Row | BadRow:
        """Return a row with its number and id among those of all manifests."""
        among: dict[str, Any] = {"row": self.rows_before + row.row, "id": row.id and self.prefix + row.id}
        return replace(row, **among)

    def _fetch(self, row: Row | BadRow) -> tuple[Row | BadRow, list[bytes]]:
        if isinstance(row, BadRow):
            return row, []
        try:
            return row, [self.files.read(image) if isinstance(image, str) else image for image in row.images]
        except BadPath as error:
            return BadRow(row.row, row.id, error.reason, error.detail), []

    def _measure(self, row: Row | BadRow, contents: Sequence[bytes], shards: "_Shards") -> dict[str, Any]:
        """Return what the table holds of a row, whose images are written into the shards if all of them are valid."""
        if isinstance(row, BadRow):
            return asdict(row)
        stats, thumbnail = list[ImageStats](), b""
        for data, named in zip(contents, row.images, strict=True):
            path = named if isinstance(named, str) else None
            try:
                measured, image = measure_image(data, path and Path(path).suffix, hashed=not stats)
            except BadImage as error:
                detail = f"{path or f'image {len(stats)}'}: {error.detail}"
                return asdict(BadRow(row.row, row.id, Reason(error.reason), detail))
            thumbnail = thumbnail or make_thumbnail(image)
            stats.append(measured)
        shard, position = shards.add(row, contents)
        return {
            **{name: getattr(row, name) for name, _ in FIELDS},
            "images": [image._asdict() for image in stats],
            "thumbnail": thumbnail,
            "shard": shard,
            "position": position,
        }


class _Shards:
    """Write the images of a block into shards; a shard is closed at `shard_bytes`."""

    def __init__(self, reader: BlockReader, number: int) -> None:
        self.written = list[dict[str, Any]]()
        self._reader, self._draft = reader, reader.folder / f"{number}.shard"
        self._writer: pq.ParquetWriter | None = None
        self._rows = list[dict[str, Any]]()  # not written yet
        self._pending = self._size = self._count = 0  # bytes of those; bytes and rows of the open shard

    def add(self, row: Row, contents: Sequence[bytes]) -> tuple[int, int]:
        """Add a row's images, and return its shard and its position there."""
        if self._size >= self._reader.shard_bytes:
            self.close()
        place = len(self.written), self._count
        self._rows.append({"row": row.row, "id": row.id, "images": [{"bytes": data} for data in contents]})
        size = sum(map(len, contents))
        self._pending, self._size, self._count = self._pending + size, self._size + size, self._count + 1
        if self._pending >= GROUP_BYTES:
            self._flush()
        return place

    def close(self) -> None:
        """Close the open shard, if there is one, and keep it under its sha256."""
        self._flush()
        if self._writer is None:
            return
        self._writer.close()
        digest, size = path_digest(sync(self._draft)), self._draft.stat().st_size
        if self._reader.store:
            _open_store(self._reader.store).put_file(self._draft, digest)
        else:
            self._draft.replace(self._reader.folder / digest)
        self.written.append({"sha256": digest, "bytes": size, "rows": self._count})
        self._writer, self._size, self._count = None, 0, 0

    def _flush(self) -> None:
        if self._rows:
            # Images are compressed already.
            self._writer = self._writer or pq.ParquetWriter(self._draft, SHARD, compression="none")
            self._writer.write_table(pa.Table.from_pylist(self._rows, SHARD))
            self._rows, self._pending = [], 0


_open_store = cache(open_store)  # for the life of a process that reads blocks


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield `function` of each item in order, with up to `ahead` of them computed at once in threads."""
    if not ahead:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(ahead) as pool:
        pending = deque[Future[Result]]()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_details(table: Path) -> BlockDetails:
    """Return the details of a block from the metadata of its table."""
    return BlockDetails(**json.loads(pq.read_schema(table).metadata[DETAILS]))


def read_rows(table: Path) -> pa.Table:
    """Return the rows of a block from its table; `pq.read_table` would import pandas."""
    with pq.ParquetFile(table) as file:
        return file.read(use_threads=False)
