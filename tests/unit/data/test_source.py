"""Rows of a source by every rule of formats.md: what is bad becomes a `BadRow` with its reason, never an exception."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardcase.data.quarantine import BadRow, Reason, write_quarantine
from hardcase.data.source import MAX_LINE, MAX_REASONING, Row, Source, find_manifest
from hardcase.errors import InputError

GOOD: dict[str, Any] = {
    "id": "one",
    "aspect": "physical_shadow",
    "original": "o.png",
    "candidates": ["a.png", "b.png", "c.png", "d.png"],
    "answer": ["A", "C"],
}
MISSING = object()
PNG = b"\x89PNG\r\n\x1a\n"


def line(**changes: Any) -> bytes:
    row = {key: value for key, value in {**GOOD, **changes}.items() if value is not MISSING}
    return json.dumps(row).encode()


def rows(folder: Path, *lines: bytes, end: bytes = b"\n") -> list[Row | BadRow]:
    (folder / "manifest.jsonl").write_bytes(b"".join(each + end for each in lines))
    return list(read_rows(open_source(folder)))


def open_source(folder: Path) -> Source:
    return Source(find_manifest(folder))


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    return (row for block in source.list_blocks() for row in source.read_block(block))


def only(folder: Path, data: bytes) -> Row | BadRow:
    (row,) = rows(folder, data)
    return row


def test_a_plain_row_is_read_as_written(tmp_path: Path) -> None:
    row = only(tmp_path, line(reasoning="A leans.", split="eval", group="kettle"))
    paths = ("o.png", "a.png", "b.png", "c.png", "d.png")
    assert row == Row(1, "one", "physical_shadow", ("A", "C"), "A leans.", "eval", "kettle", paths)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7},
        {"id": -7},
        {"id": 0},
        {"id": "x" * 256},
        {"id": "日本 🫖 ü"},
        {"answer": []},
        {"answer": ["D", "A", "C", "B"]},
        {"reasoning": None, "split": None, "group": None},
        {"reasoning": "x" * MAX_REASONING},
        {"reasoning": "a < b and <em>c</em>, 5 | 6, <|, |>, 影子不对"},
        {"group": "g" * 2**20},
        {"original": "./deep//er/o.png"},
        {"original": "Screenshot 2024-01-01 at 1.00.00\u202fPM.png"},
        {"original": "Bilder/grün (1) 🫖.png"},
        {"original": "at 12:30.png"},
        {"original": "..o.png"},
        {"comment": "x" * 2**21},
        {"score": [[[{}]]], "": None, "ID": 5, "Answer": "A"},
    ],
)
def test_odd_rows_that_keep_the_rules_are_not_lost(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert isinstance(only(tmp_path, line(**changes)), Row)


@pytest.mark.parametrize(
    ("field", "values", "reason"),
    [
        ("id", (MISSING, None, "", "x" * 257, "a\nb", "a\0", "\ud800", 1.0, True, [], {}, 10**256), Reason.BAD_ID),
        (
            "aspect",
            (MISSING, None, "", "Physical_shadow", "physical shadow", " physical_shadow", 1, [], ["physical_shadow"]),
            Reason.BAD_ASPECT,
        ),
        (
            "original",
            (
                *(MISSING, None, "", 5, ["o.png"], {"path": "o.png"}, "\0", "o\0.png", "\udcff.png", "x" * 2**20),
                *("/etc/passwd", "../o.png", "a/../../o.png", "a/..", "..", "..\\o.png", "C:\\o.png"),
                *("http://x/o.png", "file:///o.png", "file:o.png", "data:image/png;base64,AAAA", "s3://b/o.png"),
            ),
            Reason.BAD_PATH,
        ),
        (
            "candidates",
            (
                *(MISSING, None, "a.png", [], ["a.png"] * 3, ["a.png"] * 5, {"A": "a.png"}, "abcd"),
                *(["a.png"] * 3 + [None], ["a.png"] * 3 + ["../a.png"], ["a.png"] * 3 + [["d.png"]]),
            ),
            Reason.BAD_PATH,
        ),
        (
            "answer",
            (
                *(MISSING, None, "", "A", "AC", "none", 0, {}, ["a"], ["A", "A"], ["E"], ["AC"], [None], [0]),
                *(["A", ""], [["A"]], ["Α"], ["A "], [True], {"A": True}, ["none"]),
            ),
            Reason.BAD_ANSWER,
        ),
        (
            "reasoning",
            (
                *("", " \n", "\u200b", 5, ["x"], "x" * (MAX_REASONING + 1), "x\ud800"),
                *("<think>", "so </think>", "<answer>A</answer>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>"),
                *("<IMG_CONTEXT>", "<box>[1]</box>", "<ref>", "</s>"),
            ),
            Reason.BAD_REASONING,
        ),
        ("split", ("", "test", "Train", "validation", 0, True, ["train"]), Reason.BAD_SPLIT),
        ("group", ("", 5, True, ["g"], {}, "\udfff"), Reason.BAD_GROUP),
    ],
)
def test_a_field_that_breaks_its_rule_has_its_reason(
    tmp_path: Path, field: str, values: tuple[object, ...], reason: Reason
) -> None:
    found = rows(tmp_path, *(line(**{field: value}) for value in values))
    assert [(bad.row, bad.reason) for bad in found if isinstance(bad, BadRow)] == [
        (number, reason) for number in range(1, len(values) + 1)
    ]
    for bad in found:
        assert isinstance(bad, BadRow)
        assert bad.id == (None if field == "id" else "one")
        assert 0 < len(bad.detail) < 400
        bad.detail.encode()  # else the quarantine could not be written


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}{}",
        b"nonsense",
        b"null",
        b"5",
        b'"text"',
        b"[]",
        b"[[1, 2]]",
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        line()[:-1],
        line() + b",",
        line().replace(b"one", b"\xff"),
        line().replace(b"one", b"\xed\xa0\x80"),
        line(extra=0).replace(b"0}", b"NaN}"),
        line(extra=0).replace(b"0}", b"-Infinity}"),
        line().replace(b"one", b"a\tb"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * 5 + b"x" * (MAX_LINE + 5),
    ],
)
def test_a_line_that_is_not_a_json_object_is_one_bad_row(tmp_path: Path, data: bytes) -> None:
    found = rows(tmp_path, data, line())
    assert isinstance(found[0], BadRow)
    assert (found[0].row, found[0].reason) == (1, Reason.BAD_ROW)
    assert isinstance(found[1], Row)
    assert found[1].row == 2


def test_a_key_given_twice_is_bad(tmp_path: Path) -> None:
    bad = only(tmp_path, line()[:-1] + b', "answer": ["B"]}')
    assert isinstance(bad, BadRow)
    assert bad.reason == Reason.DUPLICATE_KEY


def test_numbers_too_long_for_python_spoil_only_the_fields_that_hold_them(tmp_path: Path) -> None:
    huge = b"9" * 5000
    assert isinstance(only(tmp_path, line(extra=0).replace(b"0}", huge + b"}")), Row)
    bad = only(tmp_path, line().replace(b'"one"', huge))
    assert isinstance(bad, BadRow)
    assert bad.reason == Reason.BAD_ID


def test_marks_blanks_and_line_ends_keep_rows_and_their_numbers(tmp_path: Path) -> None:
    manifest = (
        b"\xef\xbb\xbf" + line(id="1") + b"\r\n\r\n \t\n" + line(id="2", note="a\u2028b") + b"\n\n" + line(id="3")
    )
    (tmp_path / "manifest.jsonl").write_bytes(manifest)
    assert [(row.row, row.id) for row in read_rows(open_source(tmp_path))] == [(1, "1"), (4, "2"), (6, "3")]
    bad = rows(tmp_path, line(), b"\xef\xbb\xbf" + line())[1]
    assert isinstance(bad, BadRow)  # a mark is one only at the start


def test_unknown_keys_are_listed_once_and_boundedly(tmp_path: Path) -> None:
    source = open_source(tmp_path) if rows(tmp_path, line(Aspect=1, note=2), line(note=3, **{"\ud800": 1})) else None
    assert source
    list(read_rows(source))
    assert source.unknown_keys == {"Aspect", "note", "\ufffd"}
    rows(tmp_path, *(line(**{f"{number}" * 300: 1}) for number in range(300)))
    source = open_source(tmp_path)
    list(read_rows(source))
    assert len(source.unknown_keys) == 100
    assert max(map(len, source.unknown_keys)) == 256


def test_a_split_counts_as_named_even_where_its_row_is_bad(tmp_path: Path) -> None:
    for changes, named in (({"split": "eval"}, True), ({"split": "test"}, False), ({"split": None}, False)):
        (tmp_path / "manifest.jsonl").write_bytes(line(answer=None, group=None, **changes))
        source = open_source(tmp_path)
        list(read_rows(source))
        assert (source.split_named, source.group_named) == (named, False)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1024, 1025, 1056])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_blocks_hold_every_row_once_in_order(tmp_path: Path, count: int, end: str) -> None:
    lines = [line(id=number, note="é" * (number * 7919 % 3_000)).decode() for number in range(1, count + 1)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + end, encoding="utf-8")
    source = open_source(tmp_path)
    blocks, rows = source.list_blocks(), 16 if count + end.count("\n\n") <= 1024 else 32
    assert [row.row for row in read_rows(source)] == list(range(1, count + 1))
    for block in reversed(blocks):  # each alone, in any order
        first = block.number * rows + 1
        expected = [str(number) for number in range(first, min(first + rows, count + 1))]
        assert [row.id for row in Source(source.manifest).read_block(block)] == expected


def test_rows_are_streamed(tmp_path: Path) -> None:
    with (tmp_path / "manifest.jsonl").open("wb") as file:
        for number in range(3000):
            file.write(line(id=number, note="x" * 20_000) + b"\n")
    source = open_source(tmp_path)
    tracemalloc.start()
    count = sum(1 for _ in read_rows(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak < 5 * 2**20  # of 60 MB


@pytest.mark.parametrize("names", [(), ("manifest.jsonl", "manifest.parquet"), ("Manifest.json",)])
def test_a_folder_without_exactly_one_manifest_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"manifest\.jsonl"):
        find_manifest(tmp_path)


def test_paths_without_a_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").touch()
    (tmp_path / "manifest.jsonl").mkdir()
    for path in (tmp_path / "absent", tmp_path / "manifest.csv", tmp_path / "a\0b", tmp_path):
        with pytest.raises(InputError, match="source"):
            find_manifest(path)


def test_a_manifest_may_be_named_directly(tmp_path: Path) -> None:
    for name in ("manifest.jsonl", "manifest.parquet", "other.JSONL"):
        (tmp_path / name).write_bytes(line())
    assert len(list(read_rows(Source(find_manifest(tmp_path / "manifest.jsonl"))))) == 1
    assert len(list(read_rows(Source(find_manifest(tmp_path / "other.JSONL"))))) == 1


# --- Parquet


def parquet(folder: Path, table: pa.Table) -> list[Row | BadRow]:
    pq.write_table(table, folder / "manifest.parquet", row_group_size=3)
    return list(read_rows(open_source(folder)))


def test_parquet_rows_are_those_of_jsonl(tmp_path: Path) -> None:
    values = [
        {**GOOD, "id": str(number), "reasoning": None, "split": "train", "group": "g", "note": 1}
        for number in range(150)
    ]
    found = parquet(tmp_path, pa.Table.from_pylist(values))
    (tmp_path / "manifest.parquet").unlink()
    assert found == rows(tmp_path, *(json.dumps(value).encode() for value in values))
    assert [row.row for row in found] == list(range(1, 151))


@pytest.mark.parametrize("width", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_way_to_keep_text_in_parquet_is_read(tmp_path: Path, width: pa.DataType) -> None:
    table = pa.table(
        {
            "id": pa.array([5], pa.uint64()),
            "aspect": pa.array(["physical_shadow"]).cast(width),
            "original": ["o.png"],
            "candidates": pa.array([GOOD["candidates"]], pa.list_(pa.string(), 4)),
            "answer": pa.array([[]], pa.large_list(pa.string())),
        }
    )
    (row,) = parquet(tmp_path, table)
    assert isinstance(row, Row)
    assert (row.id, row.answer) == ("5", ())


@pytest.mark.parametrize("path", [None, "", "o.PNG", "/tmp/cache/o.png", "picture", "http://host/o.png"])
def test_images_inside_parquet_are_taken_from_there(tmp_path: Path, path: str | None) -> None:
    original = {"bytes": PNG, "path": path}
    candidates = [{"bytes": PNG + bytes([number]), "path": path} for number in range(4)]
    (row,) = parquet(tmp_path, embedded(original, candidates))
    assert isinstance(row, Row)
    assert row.images == (PNG, *(PNG + bytes([number]) for number in range(4)))


def test_an_image_struct_without_bytes_names_a_file_of_the_source(tmp_path: Path) -> None:
    candidates = [{"bytes": None, "path": f"{letter}.png"} for letter in "abcd"]
    (row,) = parquet(tmp_path, embedded({"bytes": None, "path": "deep/o.png"}, candidates))
    assert isinstance(row, Row)
    assert row.images == ("deep/o.png", "a.png", "b.png", "c.png", "d.png")


@pytest.mark.parametrize(
    ("original", "reason", "detail"),
    [
        ({"bytes": PNG, "path": "o.jpg"}, Reason.SUFFIX_MISMATCH, "'o.jpg': holds PNG, named .jpg"),
        ({"bytes": b"GIF89a", "path": "o.png"}, Reason.UNSUPPORTED_FORMAT, "'o.png': neither JPEG, PNG nor WebP"),
        ({"bytes": None, "path": "../o.png"}, Reason.BAD_PATH, "'../o.png': must be relative"),
        ({"bytes": None, "path": None}, Reason.BAD_PATH, "None: not a path"),
        (None, Reason.BAD_PATH, "None: not a path"),
    ],
)
def test_an_embedded_image_that_breaks_a_rule_is_bad_by_its_name(
    tmp_path: Path, original: dict[str, Any] | None, reason: Reason, detail: str
) -> None:
    (bad,) = parquet(tmp_path, embedded(original, [{"bytes": PNG, "path": None}] * 4))
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.reason) == ("one", reason)
    assert bad.detail.startswith(detail)


def embedded(original: dict[str, Any] | None, candidates: list[dict[str, Any]]) -> pa.Table:
    """A table as Hugging Face's datasets writes it."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = pa.Table.from_pylist([{**GOOD, "original": None, "candidates": None}])
    return columns.set_column(2, "original", pa.array([original], image)).set_column(
        3, "candidates", pa.array([candidates], pa.list_(image))
    )


def test_a_backslash_in_a_path_is_named(tmp_path: Path) -> None:
    bad = only(tmp_path, line(original="images\\o.png"))
    assert isinstance(bad, BadRow)
    assert bad.detail.endswith("holds a backslash; write / between folders")


def test_parquet_of_wrong_types_is_bad_rows(tmp_path: Path) -> None:
    for column, value in (("id", 1.5), ("id", b"x"), ("answer", "A"), ("answer", None), ("candidates", [1, 2, 3, 4])):
        (bad,) = parquet(tmp_path, pa.Table.from_pylist([{**GOOD, column: value}]))
        assert isinstance(bad, BadRow)


def test_invalid_utf_8_in_parquet_affects_only_its_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([GOOD, GOOD])
    bad_text = pa.array([b"\xff", b"two"]).view(pa.string())
    first, second = parquet(tmp_path, table.set_column(0, "id", bad_text))
    assert isinstance(first, BadRow)
    assert first.reason == Reason.BAD_ROW
    assert isinstance(second, Row)


def test_unknown_columns_are_not_even_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([GOOD]).append_column("when", pa.array([2**62], pa.timestamp("us")))
    pq.write_table(table, tmp_path / "manifest.parquet")
    source = open_source(tmp_path)
    assert [type(row) for row in read_rows(source)] == [Row]
    assert source.unknown_keys == {"when"}


def test_a_column_given_twice_is_a_key_given_twice(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([GOOD])
    (bad,) = parquet(tmp_path, table.append_column("id", pa.array(["x"])))
    assert isinstance(bad, BadRow)
    assert bad.reason == Reason.DUPLICATE_KEY


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"x" * 99 + b"PAR1", line()])
def test_an_invalid_parquet_manifest_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"manifest\.parquet"):
        list(read_rows(open_source(tmp_path)))


def test_parquet_of_something_else_or_truncated_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the columns"):
        parquet(tmp_path, pa.table({"image": ["a"]}))
    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "manifest.parquet")
    misnamed = (tmp_path / "manifest.parquet").read_bytes().replace(b"aspect", b"\xe1spect")
    (tmp_path / "manifest.parquet").write_bytes(misnamed)
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(open_source(tmp_path)))
    pq.write_table(pa.Table.from_pylist([GOOD] * 9), tmp_path / "manifest.parquet", compression="zstd")
    data = bytearray((tmp_path / "manifest.parquet").read_bytes())
    data[4:120] = os.urandom(116)
    (tmp_path / "manifest.parquet").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(open_source(tmp_path)))


def test_the_quarantine_is_ordered_counted_and_readable(tmp_path: Path) -> None:
    bad = [
        BadRow(2, "b", Reason.BAD_ID, "日本"),
        BadRow(5, "c", Reason.BAD_ID, ""),
        BadRow(9, None, Reason.BAD_ROW, "x"),
    ]
    assert write_quarantine(bad, tmp_path / "q.parquet") == {"bad_id": 2, "bad_row": 1}
    table = pq.read_table(tmp_path / "q.parquet")
    assert table.column_names == ["row", "id", "reason", "detail"]
    assert table.column("row").to_pylist() == [2, 5, 9]
    assert write_quarantine([], tmp_path / "q.parquet") == {}
    assert pq.read_table(tmp_path / "q.parquet").schema == table.schema


def test_the_page_for_users_tells_how_to_mend_every_reason() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "prepare-data.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {reason for reason in Reason if any(f"`{reason}`" in cell for cell in table)} == set(Reason)
