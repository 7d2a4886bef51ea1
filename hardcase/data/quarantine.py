"""The quarantine (`quarantine.parquet`): every row that is not in the snapshot, with its reason."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

BATCH: Final = 8192  # rows in a row group
SCHEMA: Final = pa.schema([("row", pa.int64()), ("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class Reason(StrEnum):
    """Why a row is quarantined; `docs/how-to/prepare-data.md` says how to fix each."""

    BAD_ROW = "bad_row"
    DUPLICATE_KEY = "duplicate_key"
    BAD_ID = "bad_id"
    BAD_ASPECT = "bad_aspect"
    BAD_PATH = "bad_path"
    OUTSIDE_SOURCE = "outside_source"
    MISSING_FILE = "missing_file"
    NOT_REGULAR = "not_regular"
    BAD_ANSWER = "bad_answer"
    BAD_REASONING = "bad_reasoning"
    BAD_SPLIT = "bad_split"
    BAD_GROUP = "bad_group"
    UNSUPPORTED_FORMAT = "unsupported_format"
    SUFFIX_MISMATCH = "suffix_mismatch"
    ANIMATED = "animated"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    BAD_SIDE = "bad_side"
    BAD_RATIO = "bad_ratio"
    CORRUPT = "corrupt"
    DUPLICATE_ID = "duplicate_id"
    CONTRADICTION = "contradiction"
    DUPLICATE_SAMPLE = "duplicate_sample"
    SPLIT_LEAK = "split_leak"


class BrokenRule(Exception):
    """Bytes or a value that break a rule; `detail` has what breaks it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row of the quarantine."""

    row: int  # physical line, or Parquet row, from 1
    id: str | None  # as far as it could be read
    reason: Reason
    detail: str


def write_quarantine(bad: Iterable[BadRow], path: Path) -> dict[str, int]:
    """Write the table of rows, which come in order, and return their number by reason."""
    counts = Counter[str]()
    with pq.ParquetWriter(path, SCHEMA) as writer:
        iterator = iter(bad)
        while rows := list(islice(iterator, BATCH)):
            writer.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA))
            counts.update(str(row.reason) for row in rows)
    return dict(sorted(counts.items()))


def count_quarantine(path: Path) -> dict[str, int]:
    """Count the rows of the table by reason."""
    return dict(sorted(Counter(pq.read_table(path, schema=SCHEMA)["reason"].to_pylist()).items()))
