"""Read rows of a Parquet file in bounded memory, whatever the file holds or states.

A page of Parquet is decompressed as a whole, a dictionary can repeat one large value in every row, and run lengths can
state millions of values in a few bytes. So the headers of all pages that Arrow will read are checked first: they, not
the metadata at the file's end, decide what it allocates. Format: https://parquet.apache.org/docs/file-format/
"""

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.errors import InputError

MAX_GROUP_ROWS: Final = 2**20  # what pyarrow writes by default
# Values of a column in a row group: lists of our fields hold at most four, and some rows are bad.
FEW_VALUES, MAX_VALUES_PER_ROW = 2**16, 8
# Beyond the first, a page may be at most so many times its compressed size. Images are hardly compressible.
SMALL_PAGE, MAX_COMPRESSION = 2**22, 8
# A dictionary and a page of each column are in memory together, Arrow's copies of them beside.
MAX_PAGES: Final = 2**28
# Rows are read one by one unless all values of the row group, its dictionaries apart, fit into this size.
SMALL_GROUP, BATCH_ROWS = 2**26, 64
MAX_REPEATED: Final = 2**27  # bytes of a dictionary's values in a batch; else they are read as a dictionary
MAX_LIST: Final = 8  # elements that are read of a list
HEADER_SIZES: Final = (2**10, 2**17)
PADDING: Final = 100  # bytes that Arrow reads beyond a column of a file that names an old writer
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
DICTIONARY_ENCODINGS, DELTA_BYTE_ARRAY = (2, 8), 7  # Encoding
IMAGE_FIELDS: Final = ("original", "candidates")
IMAGE_PARTS: Final = {"bytes", "path"}


class ParquetRows:
    """Rows of a file with some of its columns; reading on from the last row is cheap."""

    def __init__(self, path: Path, fields: Collection[str]) -> None:
        self.path = path
        with pq.ParquetFile(path, arrow_extensions_enabled=False) as file:
            schema, self._metadata = file.schema_arrow, file.metadata
        self.names: list[str] = schema.names
        self._columns = [name for name in fields if name in self.names]
        if not self._columns:
            raise self._refuse(f"has none of the columns {', '.join(fields)}; rename its columns")
        for field in schema:
            if field.name in fields:
                self._check_type(field.name, field.type)
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts: list[int] = list(accumulate(sizes, initial=1))  # the number of each group's first row
        self._leaves = [
            number
            for number in range(self._metadata.num_columns)
            if self._metadata.schema.column(number).path.split(".")[0] in self._columns
        ]
        self._group, self._next = -1, 0
        self._rows: Iterator[pa.RecordBatch] = iter(())

    @property
    def num_rows(self) -> int:
        """Number of rows that the file states."""
        return self._starts[-1] - 1

    def read(self, first: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield rows by their number from 1, each a batch of one row."""
        for number in range(first, first + rows):
            group = bisect_right(self._starts, number) - 1
            if group != self._group or number < self._next:
                self._rows, self._group, self._next = self._read_group(group), group, self._starts[group]
            row = None
            while self._next <= number:
                if (row := next(self._rows, None)) is None:
                    raise self._refuse(f"row group {group} has fewer rows than the file states; write it again")
                self._next += 1
            yield number, row

    def _read_group(self, group: int) -> Iterator[pa.RecordBatch]:
        batch_rows, dictionaries = self._check_group(group)
        with pq.ParquetFile(
            self.path,
            metadata=self._metadata,
            read_dictionary=dictionaries,
            pre_buffer=False,  # else Arrow reads the row group at once, and without a buffer size, a column
            buffer_size=2**16,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        ) as file:
            batches = file.iter_batches(batch_rows, row_groups=[group], columns=self._columns, use_threads=False)
            for batch in map(_cut_lists, batches):
                for at in range(batch.num_rows):
                    yield batch.slice(at, 1)

    def _check_type(self, name: str, kind: pa.DataType) -> None:
        element = kind.value_type if _is_list(kind) else kind
        parts = [element]
        if name in IMAGE_FIELDS and pa.types.is_struct(element) and {field.name for field in element} == IMAGE_PARTS:
            parts = [field.type for field in element]
        if any(map(pa.types.is_nested, parts)):
            images = ", or images as struct<bytes: binary, path: string>" if name in IMAGE_FIELDS else ""
            raise self._refuse(f"column {name} is {kind}; write text or lists of text{images}")

    def _check_group(self, group: int) -> tuple[int, list[str]]:
        """Return how many rows may be read at once, and which columns by their dictionaries; or raise `InputError`."""
        described = self._metadata.row_group(group)
        if described.num_rows > MAX_GROUP_ROWS:
            raise self._refuse(f"row group {group} has {described.num_rows} rows; write at most {MAX_GROUP_ROWS}")
        max_values = max(FEW_VALUES, MAX_VALUES_PER_ROW * described.num_rows)
        held = plain = 0
        dictionaries = []
        with self.path.open("rb") as file:
            for leaf in self._leaves:
                column = described.column(leaf)
                try:
                    sizes = _check_pages(file.fileno(), column, max_values)
                except ValueError as error:
                    name = column.path_in_schema
                    raise self._refuse(f"column {name}, row group {group}: {error}") from error
                held, plain = held + sizes.dictionary + sizes.largest, plain + sizes.plain
                # One value could be in all rows of a batch, or in all elements of one row.
                repeats = sizes.values if self._metadata.schema.column(leaf).max_repetition_level else BATCH_ROWS
                if column.physical_type == "BYTE_ARRAY" and sizes.dictionary * repeats > MAX_REPEATED:
                    dictionaries.append(column.path_in_schema)
        if held > MAX_PAGES:
            raise self._refuse(
                f"row group {group} has pages of {held} bytes in all; write smaller row groups, and images without "
                f"dictionary encoding, so that they take at most {MAX_PAGES}"
            )
        return (BATCH_ROWS if plain <= SMALL_GROUP else 1), dictionaries

    def _refuse(self, fault: str) -> InputError:
        return InputError(f"source {self.path}: {fault}")


@lru_cache(maxsize=1)
def open_rows(path: Path, fields: tuple[str, ...], modified: int) -> ParquetRows:
    """Open a file, or return it as it was left: consecutive blocks of a row group are read in one pass.

    `modified` is the time of the file's last change.
    """
    del modified
    return ParquetRows(path, fields)


class _PageSizes:
    """Sizes of a column in a row group: bytes of its dictionary, largest page and pages without one, and values."""

    dictionary = largest = plain = values = 0


def _check_pages(file: int, column: Any, max_values: int) -> _PageSizes:
    """Walk the pages as Arrow does, and raise ValueError for one that would take more memory than its values should.

    Arrow begins and ends as column_reader.cc and file_reader.cc (`ComputeColumnChunkRange`) do.
    """
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":  # a null takes its full width
        raise ValueError("values of fixed length are not supported; write text")
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    end, sizes = start + column.total_compressed_size + PADDING, _PageSizes()
    while sizes.values < column.num_values and start < end:
        header, length = _read_header(file, start)
        try:
            kind, size, stored = header[1], header[2], header[3]
            count = header[{DATA: 5, DICTIONARY: 7, DATA_V2: 8}[kind]][1]
            encoding = header[5][2] if kind == DATA else header[8][4] if kind == DATA_V2 else None
        except (KeyError, TypeError) as error:
            raise ValueError("has a page that cannot be read; write it again") from error
        if min(size, stored, count) < 0 or size > max(SMALL_PAGE, MAX_COMPRESSION * stored):
            raise ValueError(f"a page of {stored} bytes becomes {size}; write pages of at most {SMALL_PAGE} bytes")
        if kind == DICTIONARY:
            if 4 * count > size:
                raise ValueError("its dictionary is damaged; write it again")
            sizes.dictionary = max(sizes.dictionary, size)
        else:
            sizes.values += count
            sizes.largest = max(sizes.largest, size)
            if encoding == DELTA_BYTE_ARRAY:  # each value may repeat the one before
                raise ValueError("is encoded as DELTA_BYTE_ARRAY; write it as PLAIN or by dictionary")
            if encoding not in DICTIONARY_ENCODINGS:
                sizes.plain += size
        if sizes.values > max_values:
            raise ValueError(f"holds {sizes.values} values, at most {max_values} are read; write shorter lists")
        start += length + stored
    return sizes


def _read_header(file: int, start: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a page header by number, and its length."""
    for size in HEADER_SIZES:
        try:
            return _read_struct(os.pread(file, size, start), 0)
        except (IndexError, RecursionError):
            continue
    raise ValueError("has a page header that cannot be read; write it again")


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct in Thrift's compact protocol, and where it ends."""
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        fields[number], at = _read_value(head & 15, data, at)
    return fields, at + 1


def _read_value(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false
        return None, at
    if kind == 3:  # a byte
        return None, at + 1
    if kind in (4, 5, 6):  # integers
        return _read_integer(data, at)
    if kind == 7:  # a double
        return None, at + 8
    if kind == 8:  # bytes
        length, at = _read_varint(data, at)
        return None, at + length
    if kind == 12:
        return _read_struct(data, at)
    raise ValueError("has a page header that cannot be read; write it again")


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _cut_lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with at most `MAX_LIST` elements in each list: longer ones are bad, whatever else they hold."""
    for at, column in enumerate(batch.columns):
        if _is_list(column.type) and (pc.max(pc.list_value_length(column)).as_py() or 0) > MAX_LIST:
            batch = batch.set_column(at, batch.field(at).name, pc.list_slice(column, 0, MAX_LIST))
    return batch


def _is_list(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
