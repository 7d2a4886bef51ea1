"""A Parquet file is read in bounded memory, whatever it holds or states, or refused by one clear error."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardcase.data.parquet import ParquetRows
from hardcase.errors import InputError

FIELDS = ("id", "original", "candidates", "answer", "group")
IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Prints the rows that are read and how many MiB of memory they take at most.
MEASURE = """
import resource, sys
from pathlib import Path
from hardcase.data.parquet import ParquetRows
from hardcase.errors import InputError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    rows = ParquetRows(Path(sys.argv[1]), ("id", "original", "candidates", "answer", "group"))
    print(sum(isinstance(row, dict) for _, row in rows.read(1, rows.num_rows)), peak() - before)
except InputError as error:
    print(error, peak() - before)
"""


def written(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = folder / "manifest.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def values(path: Path) -> list[Any]:
    opened = ParquetRows(path, FIELDS)
    return [row for _, row in opened.read(1, opened.num_rows)]


def measure(path: Path) -> tuple[str, int]:
    """What reading the file in a process of its own prints, and how many MiB it takes."""
    ended = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    result, peak = ended.stdout.rsplit(maxsplit=1)
    return result, int(peak)


def repeated(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


@pytest.mark.parametrize("rows", [1, 5, 64, 1000])
@pytest.mark.parametrize("dictionary", [True, False])
def test_rows_are_those_that_were_written_wherever_reading_begins(tmp_path: Path, rows: int, dictionary: bool) -> None:
    columns = {
        "id": [f"row {number}" for number in range(1000)],
        "candidates": [[f"{number}-{letter}.png" for letter in "abcd"] for number in range(1000)],
        "group": [None if number % 3 else "kettle" for number in range(1000)],
    }
    path = written(tmp_path, columns, row_group_size=130, use_dictionary=dictionary)
    expected, opened = pa.table(columns).to_pylist(), ParquetRows(path, FIELDS)
    for first in (*range(1, 1001, rows), 700, 3, 4):
        stop = min(first + rows, 1001)
        assert list(opened.read(first, stop - first)) == [
            (number, expected[number - 1]) for number in range(first, stop)
        ]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("size", [100, 2**21])
def test_embedded_images_are_read_as_written(tmp_path: Path, dictionary: bool, size: int) -> None:
    images = [{"bytes": bytes([number]) * size, "path": f"{number}.png"} for number in range(8)]
    rows = [{"original": images[number], "candidates": images[number : number + 4]} for number in range(4)]
    columns = {
        "original": pa.array([row["original"] for row in rows], IMAGES),
        "candidates": pa.array([row["candidates"] for row in rows], pa.list_(IMAGES)),
    }
    assert values(written(tmp_path, columns, use_dictionary=dictionary, compression="none")) == rows


def test_one_large_value_in_all_rows_takes_its_size_once(tmp_path: Path) -> None:
    columns = {"id": [str(number) for number in range(64)], "group": repeated("x" * 2**25, 64)}
    result, peak = measure(written(tmp_path, columns, compression="zstd"))
    assert "column group, row group 0: a page of" in result
    assert peak < 64
    # The largest that is read: in a list of each row it is read as a dictionary.
    lists = pa.ListArray.from_arrays(pa.array(range(0, 801, 8), pa.int32()), repeated("x" * 4_000_000, 800))
    columns = {"id": [str(number) for number in range(100)], "answer": lists}
    result, peak = measure(written(tmp_path, columns, compression="zstd"))
    assert result == "100"
    assert peak < 256


@pytest.mark.parametrize("value", ["A", None])
def test_one_list_of_millions_of_elements_is_refused_by_its_column(tmp_path: Path, value: str | None) -> None:
    elements = (
        pa.array([None], pa.string()).take(pa.array([0] * 20_000_000)) if value is None else repeated(value, 20_000_000)
    )
    lists = pa.ListArray.from_arrays(pa.array([0, len(elements)], pa.int32()), elements)
    result, peak = measure(written(tmp_path, {"id": ["a"], "answer": lists}))
    assert "column answer.list.element, row group 0: holds 20000000 values" in result
    assert peak < 64


def test_a_long_list_is_cut_so_that_its_row_is_bad_by_its_length(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": ["a", "b"], "answer": [["A"] * 60_000, ["B"]]})
    assert [len(row["answer"]) for row in values(path)] == [8, 1]


def varint(value: int, length: int = 0) -> bytes:
    """A number as Thrift writes it, or as it may, in more bytes."""
    data = bytes(value >> shift & 0x7F | 0x80 for shift in range(0, max(7 * length, value.bit_length(), 1), 7))
    return data[:-1] + bytes([data[-1] & 0x7F])


def test_metadata_that_states_fewer_values_than_the_pages_hold_does_not_help(tmp_path: Path) -> None:
    count = 20_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), repeated("A", count))
    path = written(tmp_path, {"id": ["a"], "answer": lists}, write_statistics=False)
    data, true = path.read_bytes(), varint(2 * count)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert true in data[footer:]
    path.write_bytes(data[:footer] + data[footer:].replace(true, varint(2 * 4, len(true))))
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).num_values == 4
    result, peak = measure(path)
    assert "holds 20000000 values" in result
    assert peak < 64


@pytest.mark.parametrize("stated", [-1, 2**20 + 1, 2**40])
def test_more_rows_than_a_row_group_can_have_are_refused_before_they_are_counted(tmp_path: Path, stated: int) -> None:
    path = written(tmp_path, {"id": ["a"] * 70_000}, write_statistics=False)
    data, number = path.read_bytes(), varint(2 * 70_000)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = data.rindex(b"\x16" + number, footer) + 1  # rows of the row group follow the columns
    changed = data[footer:at] + varint(2 * stated if stated > 0 else 1) + data[at + len(number) : -8]
    path.write_bytes(data[:footer] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match=f"row group 0 has {stated} rows"):
        ParquetRows(path, FIELDS)


def test_pages_that_are_far_larger_than_their_bytes_are_refused(tmp_path: Path) -> None:
    columns = {"id": ["x" * 2**24 for _ in range(20)]}
    path = written(tmp_path, columns, compression="zstd", use_dictionary=False, data_page_size=1, write_batch_size=1)
    with pytest.raises(InputError, match=r"column id, row group 0: a page of \d+ bytes becomes 167772"):
        values(path)


def test_pages_that_take_too_much_memory_together_are_refused(tmp_path: Path) -> None:
    images = pa.array([{"bytes": bytes([n]) * 2**25, "path": None} for n in range(10)], IMAGES)
    path = written(tmp_path, {"original": images}, compression="none")
    with pytest.raises(InputError, match=r"row group 0 has pages of 3355.* bytes in all; write smaller row groups"):
        values(path)


@pytest.mark.parametrize(
    ("columns", "options", "fault"),
    [
        ({"id": pa.array([None] * 64, pa.binary(2**16))}, {}, "column id, row group 0: values of fixed length"),
        (
            {"id": ["x" * 2**20] * 64},
            {"use_dictionary": False, "column_encoding": {"id": "DELTA_BYTE_ARRAY"}},
            "column id, row group 0: is encoded as DELTA_BYTE_ARRAY",
        ),
        ({"answer": [[["A"]]]}, {}, "column answer is list<element: list<"),
        ({"group": [{"a": 1}]}, {}, "column group is struct<a"),
        (
            {"original": [{"bytes": b"", "path": "", "id": 1}]},
            {},
            "column original is struct<.* or images as struct<bytes",
        ),
        (
            {"candidates": [[{"bytes": [b""], "path": ""}]]},
            {},
            "column candidates is list<element: struct<bytes: list<",
        ),
        (
            {"answer": [{"bytes": b"", "path": ""}]},
            {},
            "column answer is struct<bytes: binary, path: string>; write text",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_the_name_of_its_column(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        values(written(tmp_path, columns, **options))


def test_a_wrong_checksum_of_a_page_is_an_error(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"id": ["one", "two"]}, write_page_checksum=True, write_statistics=False, compression="none"
    )
    assert [row["id"] for row in values(path)] == ["one", "two"]
    path.write_bytes(path.read_bytes().replace(b"two", b"too", 1))
    with pytest.raises(OSError, match="CRC"):
        values(path)
