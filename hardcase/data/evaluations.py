"""An evaluation (`evaluation.parquet`): one row a sample with its truth, the model's answer and what that earns."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.errors import InputError

SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("aspect", pa.string()),
        ("group", pa.string()),
        ("truth", pa.list_(pa.string())),
        ("answer", pa.list_(pa.string())),  # null where the text is no answer
        ("text", pa.string()),
        ("dpa", pa.float64()),
        ("exact", pa.bool_()),
    ]
)
INVALID: Final = "invalid"
SIZES: Final = ("none", "1", "2", "3", "4", INVALID)
logger = logging.getLogger(__name__)


def write_evaluation(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), path)


def read_evaluation(source: Path | bytes, what: str) -> pa.Table:
    """Read a table of `SCHEMA` from a file or its content, or raise `InputError`; `what` names it in messages."""
    if isinstance(source, Path):
        what = f"{what} {source}"
    fix = "hand in the evaluation.parquet of a run"
    try:
        table = pq.ParquetFile(source if isinstance(source, Path) else pa.BufferReader(source)).read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{what}: not a readable Parquet file; {fix}") from error
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise InputError(f"{what}: no column {', '.join(missing)}; {fix}")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as error:
        raise InputError(f"{what}: a column of another type ({error}); {fix}") from error


def read_flat_evaluation(path: Path, what: str) -> pd.DataFrame:
    """Read a table as drift compares it: scores as numbers from 0 to 1, answers as categories.

    A score that is missing or not finite earns nothing, as an invalid answer does. `answer` is "AC", "none" or
    "invalid", `answer_size` one of `SIZES`. A table without rows is an `InputError`.
    """
    table = read_evaluation(path, what)
    if table.num_rows == 0:
        raise InputError(f"{what} {path}: holds no rows; hand in the evaluation.parquet of a run")
    answers = table["answer"].combine_chunks()
    letters = pc.binary_join(pc.fill_null(answers, pa.scalar([], answers.type)), "")
    empty = pc.if_else(pc.equal(letters, ""), "none", letters)
    answer = pc.if_else(pc.is_valid(answers), empty, INVALID).to_numpy(zero_copy_only=False)
    lengths = np.char.str_len(answer.astype(str)).astype(str)
    scores = table.select(["dpa", "exact"]).to_pandas().astype(np.float64)
    if unscored := int((~np.isfinite(scores)).any(axis=1).sum()):
        logger.warning("%s %s: %d rows without a finite score; they count as wrong", what, path, unscored)
    ids = pc.fill_null(table["id"], "")
    return pd.DataFrame(
        {
            "id": ids.to_numpy(),
            "aspect": pc.fill_null(table["aspect"], "unknown").to_numpy(),
            "group": pc.coalesce(table["group"], pc.binary_join_element_wise("sample", ids, " ")).to_numpy(),
            "answer": answer,
            "answer_size": np.where(np.isin(answer, ["none", INVALID]), answer, lengths),
            "dpa": np.nan_to_num(scores["dpa"], nan=0.0, posinf=0.0, neginf=0.0),
            "exact": np.nan_to_num(scores["exact"], nan=0.0),
            "invalid": (answer == INVALID).astype(np.float64),
        }
    )
