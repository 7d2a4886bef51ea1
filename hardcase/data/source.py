"""Read the rows of a manifest, `manifest.jsonl` or `manifest.parquet`, block by block.

A block is a fixed range of rows that a process can read alone. A row that breaks a rule becomes a `BadRow`, never an
exception.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as shorten
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from hardcase.data.images import BadImage, check_suffix
from hardcase.data.parquet import ParquetRows, open_rows
from hardcase.data.quarantine import BadRow, BrokenRule, Reason
from hardcase.errors import InputError
from hardcase.task.answer import TAGS, has_visible
from hardcase.task.sample import ASPECTS, LETTERS

FIELDS: Final = ("id", "aspect", "original", "candidates", "answer", "reasoning", "split", "group")
# Rows of a block: few where there are few rows, so that all cores have work. Other numbers give other snapshots.
BLOCK_ROWS: Final = (16, 32, 64, 128)
BLOCKS: Final = 64  # above which a block is larger
# Bytes of one row of JSONL, far more than its fields need.
MAX_LINE: Final = 2**25
MAX_ID: Final = 256
MAX_PATH: Final = 4096
MAX_REASONING: Final = 16_384
MAX_UNKNOWN: Final = 100
SPECIAL: Final = re.compile(r"<\|[^|<>\s]+\|>|</?(?:img|quad|ref|box|s)>|<(?:IMG_CONTEXT|video|pad|unk)>")
# JSON can hold half of a surrogate pair, UTF-8 cannot.
SURROGATE: Final = re.compile("[\ud800-\udfff]")
MANIFESTS: Final = ("manifest.jsonl", "manifest.parquet")
SUFFIXES: Final = (".jsonl", ".parquet")
STORED: Final = "snapshot:"
URI: Final = re.compile("(s3|procedural|file)://|snapshot:")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with valid fields, whose images are not read yet."""

    row: int  # physical line, or Parquet row, from 1
    id: str
    aspect: str
    answer: tuple[str, ...]
    reasoning: str | None
    split: str | None
    group: str | None
    images: tuple[str | bytes, ...]  # the original and four candidates: paths in the source, or encoded bytes


class Block(NamedTuple):
    """A range of rows of a manifest."""

    number: int  # from 0
    first: int  # physical line, or Parquet row, of its first row, from 1
    rows: int  # at most; blank lines count
    offset: int  # of its first line in bytes; 0 in Parquet


def split_sources(source: str) -> list[str]:
    """Return the sources that a text names: several URIs with spaces between them, or one source, spaces included.

    Raises:
        InputError: a stored snapshot is among several.
    """
    sources = source.split()
    if len(sources) == 1 or not all(map(URI.match, sources)):
        return [source]
    if any(each.startswith(STORED) for each in sources):
        raise InputError(f"source {source}: a stored snapshot cannot be merged with others; name it alone")
    return sources


def find_manifest(path: Path) -> Path:
    """Return the manifest file that a path names or a folder holds; raise `InputError` unless it is exactly one."""
    if path.is_dir():
        return path / choose_manifest([name for name in MANIFESTS if (path / name).is_file()], str(path))
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    raise InputError(f"source {path}: neither a folder nor a .jsonl or .parquet manifest; check the path")


def choose_manifest(names: Sequence[str], source: str) -> str:
    """Return the name of the one manifest among those that a folder holds; raise `InputError` for both or neither."""
    if len(names) != 1:
        holds = f"both {' and '.join(MANIFESTS)}" if names else f"no {' or '.join(MANIFESTS)}"
        raise InputError(f"source {source}: {holds}; a folder must hold exactly one of them")
    return names[0]


class Source:
    """A manifest opened for reading."""

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        # Of the rows read so far: the first hundred ignored keys, and whether any row names a split or a group.
        self.unknown_keys: set[str] = set()
        self.split_named = self.group_named = False

    def list_blocks(self) -> list[Block]:
        """Return the blocks of the manifest in order, or raise `InputError`."""
        with self._report_errors():
            return self._list_lines() if self._is_jsonl else self._list_parquet()

    def read_block(self, block: Block) -> Iterator[Row | BadRow]:
        """Yield the rows of a block in order, one with an invalid field as a `BadRow`, or raise `InputError`."""
        with self._report_errors():
            for number, values in self._read_lines(block) if self._is_jsonl else self._read_parquet(block):
                yield values if isinstance(values, BadRow) else self._check_row(number, values)

    @property
    def _is_jsonl(self) -> bool:
        return self.manifest.suffix.lower() == ".jsonl"

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"source {self.manifest}: cannot be read: {str(error)[:200]}; write it again") from error

    def _list_lines(self) -> list[Block]:
        smallest, (offsets, lines, at), chunk = BLOCK_ROWS[0], ([0], 0, 0), b""
        with self.manifest.open("rb") as file:
            while read := file.read(2**20):
                chunk = read
                ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
                # The ends of every line that may end a block, counted from the start of the file.
                offsets += [at + int(end) + 1 for end in ends[smallest - 1 - lines % smallest :: smallest]]
                lines, at = lines + len(ends), at + len(chunk)
        lines += not chunk.endswith(b"\n")
        rows = _choose_block_rows(lines)
        starts = [offset for offset in offsets[:: rows // smallest] if offset < at]
        firsts = [number * rows for number in range(len(starts))]
        return [
            Block(at // rows, at + 1, min(rows, lines - at), start) for at, start in zip(firsts, starts, strict=True)
        ]

    def _read_lines(self, block: Block) -> Iterator[tuple[int, Any]]:
        with self.manifest.open("rb") as file:
            file.seek(block.offset)
            for number in range(block.first, block.first + block.rows):
                line = file.readline(MAX_LINE + 1)
                if len(line) > MAX_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE)
                    yield number, BadRow(number, None, Reason.BAD_ROW, f"longer than {MAX_LINE} bytes")
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip(b" \t\r\n"):
                    yield number, _parse_line(number, line)

    def _open_parquet(self) -> ParquetRows:
        return open_rows(self.manifest, FIELDS, self.manifest.stat().st_mtime_ns)

    def _list_parquet(self) -> list[Block]:
        total = self._open_parquet().num_rows
        rows = _choose_block_rows(total)
        return [Block(number, at + 1, min(rows, total - at), 0) for number, at in enumerate(range(0, total, rows))]

    def _read_parquet(self, block: Block) -> Iterator[tuple[int, Any]]:
        file = self._open_parquet()
        self._note_unknown(name for name in file.names if name not in FIELDS)
        repeated = [name for name in FIELDS if file.names.count(name) > 1]
        for number, values in file.read(block.first, block.rows):
            if repeated:
                yield number, BadRow(number, None, Reason.DUPLICATE_KEY, f"two columns {repeated[0]}")
            elif isinstance(values, Exception):
                yield number, BadRow(number, None, Reason.BAD_ROW, f"cannot be read: {values}"[:200])
            else:
                yield number, values

    def _note_unknown(self, keys: Iterable[str]) -> None:
        for key in keys:
            if len(self.unknown_keys) < MAX_UNKNOWN:
                self.unknown_keys.add(SURROGATE.sub("\N{REPLACEMENT CHARACTER}", key[:MAX_ID]))

    def _check_row(self, number: int, values: dict[str, Any]) -> Row | BadRow:
        self._note_unknown(key for key in values if key not in FIELDS)
        self.split_named |= values.get("split") in ("train", "eval")
        self.group_named |= isinstance(values.get("group"), str)
        name = _parse_id(values.get("id"))
        try:
            if name is None:
                raise BrokenRule(Reason.BAD_ID, f"{shorten(values.get('id'))}: not printable text of 1 to {MAX_ID}")
            if values.get("aspect") not in ASPECTS:
                raise BrokenRule(Reason.BAD_ASPECT, f"{shorten(values.get('aspect'))}: not one of {', '.join(ASPECTS)}")
            candidates = values.get("candidates")
            if not isinstance(candidates, list) or len(candidates) != len(LETTERS):
                raise BrokenRule(Reason.BAD_PATH, f"candidates {shorten(candidates)}: not a list of four paths")
            answer, reasoning = _parse_answer(values.get("answer")), _parse_reasoning(values.get("reasoning"))
            split, group = values.get("split"), values.get("group")
            if split not in (None, "train", "eval"):
                raise BrokenRule(Reason.BAD_SPLIT, f"{shorten(split)}: not train or eval")
            if not (group is None or (isinstance(group, str) and group and not SURROGATE.search(group))):
                raise BrokenRule(Reason.BAD_GROUP, f"{shorten(group)}: not text")
            images = tuple(map(_parse_image, (values.get("original"), *candidates)))
            return Row(number, name, values["aspect"], answer, reasoning, split, group, images)
        except BrokenRule as error:
            return BadRow(number, name, error.reason, error.detail)


def _choose_block_rows(rows: int) -> int:
    return next((size for size in BLOCK_ROWS if rows <= size * BLOCKS), BLOCK_ROWS[-1])


def _parse_line(number: int, line: bytes) -> Any:
    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise BrokenRule(Reason.DUPLICATE_KEY, "a key occurs twice")
        return values

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def parse_integer(digits: str) -> int | float:
        # Python refuses very long integers, which an ignored key may hold. No field accepts a float.
        return int(digits) if len(digits) <= MAX_ID else float(digits)

    try:
        values = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=refuse_repeats,
            parse_constant=refuse_constant,
            parse_int=parse_integer,
        )
    except BrokenRule as error:
        return BadRow(number, None, error.reason, error.detail)
    except (ValueError, RecursionError) as error:
        return BadRow(number, None, Reason.BAD_ROW, f"not a JSON object in UTF-8: {error}"[:200])
    if not isinstance(values, dict):
        return BadRow(number, None, Reason.BAD_ROW, "not a JSON object")
    return values


def _parse_id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable() else None


def _parse_image(value: Any) -> str | bytes:
    """Return the path of an image, or its bytes where a struct of Parquet holds them."""
    if not isinstance(value, dict) or value.keys() != {"bytes", "path"}:
        return _parse_path(value)
    data, path = value["bytes"], value["path"]
    if not isinstance(data, bytes):
        return _parse_path(path)
    if path is not None and not isinstance(path, str):
        raise BrokenRule(Reason.BAD_PATH, f"{shorten(path)}: not a path")
    if path and (suffix := PurePosixPath(path).suffix):
        try:
            check_suffix(data, suffix)
        except BadImage as error:
            raise BrokenRule(error.reason, f"{shorten(path)}: {error.detail}") from error
    return data


def _parse_path(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH or SURROGATE.search(value):
        raise BrokenRule(Reason.BAD_PATH, f"{shorten(value)}: not a path")
    path = PurePosixPath(value)
    if "\\" in value:
        raise BrokenRule(Reason.BAD_PATH, f"{shorten(value)}: holds a backslash; write / between folders")
    if path.is_absolute() or ".." in path.parts or re.search(r"\0|://|^data:|^file:", value):
        raise BrokenRule(Reason.BAD_PATH, f"{shorten(value)}: must be relative, without `..`, and not a URL")
    return value


def _parse_answer(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or any(letter not in LETTERS for letter in value) or len(set(value)) < len(value):
        raise BrokenRule(Reason.BAD_ANSWER, f"{shorten(value)}: not a list of distinct letters A to D")
    return tuple(sorted(value))


def _parse_reasoning(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_REASONING or not has_visible(value):
        raise BrokenRule(Reason.BAD_REASONING, f"not plain text of 1 to {MAX_REASONING} characters")
    if any(tag in value for tag in TAGS) or SPECIAL.search(value) or SURROGATE.search(value):
        raise BrokenRule(Reason.BAD_REASONING, "holds a tag of the task or a special token")
    return value
