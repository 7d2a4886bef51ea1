"""Completions: a table of `id` and `texts`. Work on many samples is divided into shards, each with a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.errors import HardcaseError

SCHEMA: Final = pa.schema([("id", pa.string()), ("texts", pa.list_(pa.string()))])


def write_completions(ids: Sequence[str], texts: Sequence[list[str]], path: Path) -> None:
    pq.write_table(pa.table([list(ids), list(texts)], schema=SCHEMA), path)


def read_completions(shards: Sequence[Path], ids: Sequence[str]) -> list[list[str]]:
    """Read the texts of each sample; raise `HardcaseError` unless the shards hold these samples in order."""
    table = pa.concat_tables([pq.read_table(shard, schema=SCHEMA) for shard in shards])
    if table["id"].to_pylist() != list(ids):
        raise HardcaseError(
            f"{len(shards)} shards of completions, {table.num_rows} rows: not the split's {len(ids)} "
            "samples in order; run the step again"
        )
    texts: list[list[str]] = table["texts"].to_pylist()
    return texts


def merge_completions(shards: Sequence[Path], merged: Path) -> None:
    """Write the table that one shard of all samples would have been."""
    table = pa.concat_tables([pq.read_table(shard, schema=SCHEMA) for shard in shards])
    write_completions(table["id"].to_pylist(), table["texts"].to_pylist(), merged)
