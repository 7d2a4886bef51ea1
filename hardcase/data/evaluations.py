"""An evaluation as drift looks at it: one row a sample, its scores as numbers and its answer as categories."""

import logging
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.errors import InputError

SCHEMA: Final = {
    "id": pa.string(),
    "aspect": pa.string(),
    "group": pa.string(),
    "answer": pa.list_(pa.string()),
    "dpa": pa.float64(),
    "exact": pa.bool_(),
}
INVALID: Final = "invalid"
SIZES: Final = ("none", "1", "2", "3", "4", INVALID)
logger = logging.getLogger(__name__)


def read(path: Path, what: str) -> pd.DataFrame:
    """Read `evaluation.parquet`.

    A score that is missing or not finite earns nothing, as an invalid answer does.

    Args:
        path: the file.
        what: what it is, for messages.

    Returns:
        Columns `id, aspect, group` and `answer` ("AC", "none", "invalid") and `answer_size` (one of `SIZES`) as text,
        `dpa, exact, invalid` as numbers from 0 to 1.

    Raises:
        InputError: not a Parquet file, a column missing or of another type, or no rows.
    """
    mend = "hand in the evaluation.parquet of a run"
    try:
        raw = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{what} {path}: not a readable Parquet file; {mend}") from error
    if missing := [name for name in SCHEMA if name not in raw.column_names]:
        raise InputError(f"{what} {path}: no column {', '.join(missing)}; {mend}")
    if raw.num_rows == 0:
        raise InputError(f"{what} {path}: holds no rows; {mend}")
    try:
        table = raw.select(list(SCHEMA)).cast(pa.schema(list(SCHEMA.items())))
    except pa.ArrowException as error:
        raise InputError(f"{what} {path}: a column of another type ({error}); {mend}") from error
    return _flat(table, f"{what} {path}")


def _flat(table: pa.Table, what: str) -> pd.DataFrame:
    answers = table["answer"].combine_chunks()
    letters = pc.binary_join(pc.fill_null(answers, pa.scalar([], answers.type)), "")
    empty = pc.if_else(pc.equal(letters, ""), "none", letters)
    answer = pc.if_else(pc.is_valid(answers), empty, INVALID).to_numpy(zero_copy_only=False)
    named = np.char.str_len(answer.astype(str)).astype(str)
    dpa, exact = (
        pc.cast(table[name], pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("dpa", "exact")
    )
    if unread := int((~np.isfinite(dpa) | ~np.isfinite(exact)).sum()):
        logger.warning("%s: %d rows without a finite score; they count as wrong", what, unread)
    lone = pc.binary_join_element_wise("sample", pc.fill_null(table["id"], ""), " ")
    return pd.DataFrame(
        {
            "id": pc.fill_null(table["id"], "").to_numpy(),
            "aspect": pc.fill_null(table["aspect"], "unknown").to_numpy(),
            "group": pc.if_else(pc.is_valid(table["group"]), table["group"], lone).to_numpy(),
            "answer": answer,
            "answer_size": np.where(np.isin(answer, ["none", INVALID]), answer, named),
            "dpa": np.nan_to_num(dpa, nan=0.0, posinf=0.0, neginf=0.0),
            "exact": np.nan_to_num(exact, nan=0.0),
            "invalid": (answer == INVALID).astype(np.float64),
        }
    )
