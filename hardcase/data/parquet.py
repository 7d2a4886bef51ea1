"""Read rows of a Parquet file in bounded memory, whatever the file holds or states.

A page of Parquet is decompressed as a whole, a dictionary can repeat one large value in every row, and run lengths can
state millions of values in a few bytes. So the headers of all pages that Arrow will read are checked first: they, not
the metadata at the file's end, decide what it allocates. Format: https://parquet.apache.org/docs/file-format/ and
parquet.thrift there, whose field numbers are below. pyarrow aborts the process on some damaged metadata of columns.
"""

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.errors import InputError

MAX_ROWS: Final = 2**26
MAX_GROUP_ROWS: Final = 2**20  # what pyarrow writes by default
# Values of a column in a row group: lists of our fields hold at most four, and some rows are bad.
FEW_VALUES, MAX_VALUES_PER_ROW = 2**16, 8
# Beyond the first, a page may be at most so many times its compressed size. Images are hardly compressible.
SMALL_PAGE, MAX_COMPRESSION = 2**22, 8
# A dictionary and a page of each column are in memory together, with up to four copies that Arrow makes: under 1 GiB.
MAX_PAGES: Final = 3 * 2**26
# Rows are read one by one unless all values of the row group, its dictionaries apart, fit into this size.
SMALL_GROUP, BATCH_ROWS = 2**26, 64
MAX_REPEATED: Final = 2**27  # bytes of a dictionary's values in a batch; else they are read as a dictionary
MAX_LIST: Final = 8  # elements that are read of a list
HEADER_SIZES: Final = (2**10, 2**17)
# Fields that are read. A page header: type, sizes, and the headers of a data page, a dictionary and a data page v2.
PAGE_HEADER: Final[Mapping[int, Any]] = {1: {}, 2: {}, 3: {}, 5: {1: {}, 2: {}}, 7: {1: {}}, 8: {1: {}, 4: {}}}
# A footer: of each row group its rows, and of each column its values, bytes, and offsets of pages and dictionary.
FOOTER: Final[Mapping[int, Any]] = {4: {1: {3: {5: {}, 7: {}, 9: {}, 11: {}}}, 3: {}}}
PADDING: Final = 100  # bytes that Arrow reads beyond a column of a file that names an old writer
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
DICTIONARY_ENCODINGS, DELTA_BYTE_ARRAY = (2, 8), 7  # Encoding
IMAGE_FIELDS: Final = ("original", "candidates")
DAMAGED: Final = "its pages cannot be read; write it again"
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
        try:
            self._groups = [(group[3], [column[3] for column in group[1]]) for group in _read_footer(path)[4]]
            self._starts: list[int] = list(accumulate((rows for rows, _ in self._groups), initial=1))
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise self._refuse("its metadata cannot be read; write it again") from error
        for group, (rows, _) in enumerate(self._groups):
            if not 0 <= rows <= MAX_GROUP_ROWS:
                raise self._refuse(f"row group {group} has {rows} rows; write at most {MAX_GROUP_ROWS}")
        if self.num_rows > MAX_ROWS:
            raise self._refuse(f"has {self.num_rows} rows; at most {MAX_ROWS} are read")
        self._leaves = [
            (number, self._metadata.schema.column(number))
            for number in range(self._metadata.num_columns)
            if self._metadata.schema.column(number).path.split(".")[0] in self._columns
        ]
        self._group, self._next = -1, 0
        self._rows: Iterator[pa.RecordBatch] = iter(())

    @property
    def num_rows(self) -> int:
        """Number of rows that the file states."""
        return self._starts[-1] - 1

    def read(self, first: int, rows: int) -> Iterator[tuple[int, dict[str, Any] | ValueError | OverflowError]]:
        """Yield rows by their number from 1: the values by column, or why Python has none for them."""
        for number in range(first, first + rows):
            group = bisect_right(self._starts, number) - 1
            if group != self._group or number < self._next:
                self._rows, self._group, self._next = self._read_group(group), group, self._starts[group]
            row: Any = None
            while self._next <= number:
                del row  # it holds the memory of a batch, perhaps of the one before
                if (row := next(self._rows, None)) is None:
                    raise self._refuse(f"row group {group} has fewer rows than the file states; write it again")
                self._next += 1
            try:
                (values,) = row.to_pylist()
            except (ValueError, OverflowError) as error:  # invalid UTF-8, times out of range
                values = error
            del row
            yield number, values

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
                del batch  # before the next one is read

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
        rows, columns = self._groups[group]
        max_values = max(FEW_VALUES, MAX_VALUES_PER_ROW * rows)
        held = plain = 0
        dictionaries = []
        with self.path.open("rb") as file:
            for number, leaf in self._leaves:
                try:
                    if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY":  # a null takes its full width
                        raise ValueError("values of fixed length are not supported; write text")
                    sizes = _check_pages(file.fileno(), columns[number], max_values)
                except (ValueError, TypeError, KeyError, IndexError) as error:
                    fault = str(error) if type(error) is ValueError else DAMAGED
                    raise self._refuse(f"column {leaf.path}, row group {group}: {fault}") from error
                held, plain = held + sizes.dictionary + sizes.largest, plain + sizes.plain
                # One value could be in all rows of a batch, or in all elements of one row.
                repeats = sizes.values if leaf.max_repetition_level else BATCH_ROWS
                if leaf.physical_type == "BYTE_ARRAY" and sizes.dictionary * repeats > MAX_REPEATED:
                    dictionaries.append(leaf.path)
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


def _check_pages(file: int, column: Mapping[int, int], max_values: int) -> _PageSizes:
    """Walk the pages as Arrow does, and raise ValueError for one that would take more memory than its values should.

    Arrow begins and ends as column_reader.cc and file_reader.cc (`ComputeColumnChunkRange`) do.
    """
    values, size, start, dictionary = column[5], column[7], column[9], column.get(11, 0)
    if 0 < dictionary < start:
        start = dictionary
    end, sizes = start + size + PADDING, _PageSizes()
    while sizes.values < values and start < end:
        header, length = _read_header(file, start)
        kind, size, stored = header[1], header[2], header[3]
        count = header[{DATA: 5, DICTIONARY: 7, DATA_V2: 8}[kind]][1]
        if min(size, stored, count) < 0 or (kind == DICTIONARY and 4 * count > size):
            raise ValueError(DAMAGED)
        if size > max(SMALL_PAGE, MAX_COMPRESSION * stored):
            raise ValueError(f"a page of {stored} bytes becomes {size}; write pages of at most {SMALL_PAGE} bytes")
        if kind == DICTIONARY:
            sizes.dictionary = max(sizes.dictionary, size)
        else:
            sizes.values += count
            sizes.largest = max(sizes.largest, size)
            encoding = header[5][2] if kind == DATA else header[8][4]
            if encoding == DELTA_BYTE_ARRAY:  # each value may repeat the one before
                raise ValueError("is encoded as DELTA_BYTE_ARRAY; write it as PLAIN or by dictionary")
            if encoding not in DICTIONARY_ENCODINGS:
                sizes.plain += size
        if sizes.values > max_values:
            raise ValueError(f"holds {sizes.values} values, at most {max_values} are read; write shorter lists")
        start += length + stored
    return sizes


def _read_footer(path: Path) -> dict[int, Any]:
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return _read_struct(file.read(length), 0, FOOTER)[0]


def _read_header(file: int, start: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a page header by number, and its length."""
    for size in HEADER_SIZES:
        try:
            return _read_struct(os.pread(file, size, start), 0, PAGE_HEADER)
        except (IndexError, RecursionError):
            continue
    raise ValueError(DAMAGED)


def _read_struct(data: bytes, at: int, wanted: Mapping[int, Any]) -> tuple[dict[int, Any], int]:
    """Return the wanted fields of a struct in Thrift's compact protocol, and where it ends."""
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        value, at = _read_value(head & 15, data, at, wanted.get(number, {}))
        if number in fields:  # readers differ in which of them counts
            raise ValueError(DAMAGED)
        if number in wanted:
            fields[number] = value
    return fields, at + 1


def _read_value(kind: int, data: bytes, at: int, wanted: Mapping[int, Any]) -> tuple[Any, int]:
    value: Any = None
    if kind in (4, 5, 6):
        value, at = _read_integer(data, at)
    elif kind == 7:  # a double
        at += 8
    elif kind == 8:  # bytes
        length, at = _read_varint(data, at)
        at += length
    elif kind in (9, 10):  # a list or a set
        head, at = data[at], at + 1
        length, at = _read_varint(data, at) if head >> 4 == 15 else (head >> 4, at)
        value = []
        for _ in range(length):
            item, at = _read_value(head & 15, data, at + (head & 15 in (1, 2)), wanted)
            value.append(item)
    elif kind == 12:
        value, at = _read_struct(data, at, wanted)
    elif kind == 3:
        at += 1
    elif kind not in (1, 2):  # true and false
        raise ValueError(DAMAGED)
    if at > len(data):
        raise IndexError
    return value, at


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
