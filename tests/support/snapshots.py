"""Snapshots of given rows, in every format that was ever written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.data.snapshot import FIELDS, INDEX, SHARD, SPLITS, STATS
from hardcase.store.digest import canonical_json
from hardcase.store.store import Store, open_store

FIRST_FORMAT = pa.schema([*FIELDS, ("images", pa.list_(pa.struct([("bytes", pa.binary()), *STATS])))])
Row = dict[str, Any]


def write_snapshot(folder: Path, rows: Sequence[Row], *, written: int = 2, shard_rows: int = 70) -> Path:
    """Write a snapshot into `folder/store`, and return its manifest; a row has all fields, and images with bytes."""
    store = open_store(str(folder / "store"))
    splits = {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    content: Row = {"schema": written, "rows": len(rows), "splits": splits, "unknown_keys": []}
    if written == 1:
        parts = [[row for row in rows if row["split"] == split] for split in SPLITS]
        chunks = [part[at : at + shard_rows] for part in parts for at in range(0, len(part), shard_rows)]
        content["shards"] = [
            {**_put(store, chunk, FIRST_FORMAT), "rows": len(chunk), "split": chunk[0]["split"]} for chunk in chunks
        ]
    else:
        chunks = [list(rows[at : at + shard_rows]) for at in range(0, len(rows), shard_rows)]
        content["shards"] = [{**_put(store, chunk, SHARD, 8), "rows": len(chunk)} for chunk in chunks]
        index = [
            {**row, "shard": number, "position": position}
            for number, chunk in enumerate(chunks)
            for position, row in enumerate(chunk)
        ]
        content["index"] = _put(store, index, INDEX)
    (folder / "manifest.json").write_bytes(canonical_json(content))
    return folder / "manifest.json"


def _put(store: Store, rows: list[Row], schema: pa.Schema, group: int | None = None) -> dict[str, Any]:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, row_group_size=group, compression="none")
    data = buffer.getvalue().to_pybytes()
    return {"sha256": store.put_object(data), "bytes": len(data)}
