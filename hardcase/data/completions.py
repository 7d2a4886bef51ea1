"""Completions: a table of `id`, `texts` and `cut`. Work on many samples is divided into shards, each with a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.errors import HardcaseError

SCHEMA: Final = pa.schema([("id", pa.string()), ("texts", pa.list_(pa.string())), ("cut", pa.list_(pa.bool_()))])


class Completion(NamedTuple):
    """What a model generated for a prompt."""

    text: str
    cut: bool = False  # at the limit of new tokens, before its end


def write_completions(ids: Sequence[str], completions: Sequence[Sequence[Completion]], path: Path) -> None:
    texts, cut = ([[getattr(one, name) for one in row] for row in completions] for name in Completion._fields)
    pq.write_table(pa.table([list(ids), texts, cut], schema=SCHEMA), path)


def read_completions(shards: Sequence[Path], ids: Sequence[str]) -> list[list[Completion]]:
    """Read the completions of each sample; raise `HardcaseError` unless the shards hold these samples in order."""
    table = pa.concat_tables([pq.read_table(shard, schema=SCHEMA) for shard in shards])
    if table["id"].to_pylist() != list(ids):
        raise HardcaseError(
            f"{len(shards)} shards of completions, {table.num_rows} rows: not the split's {len(ids)} "
            "samples in order; run the step again"
        )
    rows = zip(table["texts"].to_pylist(), table["cut"].to_pylist(), strict=True)
    # Version 0.1.0 did not record what was cut.
    return [[*map(Completion, texts, cut or [False] * len(texts))] for texts, cut in rows]


def merge_completions(shards: Sequence[Path], merged: Path) -> None:
    """Write the table that one shard of all samples would have been."""
    table = pa.concat_tables([pq.read_table(shard, schema=SCHEMA) for shard in shards])
    pq.write_table(table.combine_chunks(), merged)
