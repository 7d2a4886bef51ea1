"""Read a user's source row by row: a folder with images and `manifest.jsonl` or `manifest.parquet`.

Nothing outside the folder is read. A row that breaks a rule becomes a `BadRow`, never an exception.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as shorten
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.data.images import MAX_BYTES
from hardcase.data.quarantine import BadRow, BrokenRule, Reason
from hardcase.errors import InputError
from hardcase.task.answer import TAGS, has_visible
from hardcase.task.sample import ASPECTS, LETTERS

FIELDS: Final = ("id", "aspect", "original", "candidates", "answer", "reasoning", "split", "group")
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
    paths: tuple[str, ...]  # the original and four candidates, relative to the source


class Source:
    """A source opened for reading; nothing outside `folder` is read."""

    def __init__(self, path: Path) -> None:
        """Open a manifest file, or a folder with exactly one; raise `InputError` for anything else."""
        if path.is_dir():
            manifests = [path / name for name in MANIFESTS if (path / name).is_file()]
            if len(manifests) != 1:
                holds = "both manifest.jsonl and manifest.parquet" if manifests else f"no {' or '.join(MANIFESTS)}"
                raise InputError(f"source {path}: {holds}; a folder must hold exactly one of them")
            (self.manifest,) = manifests
        elif path.is_file() and path.suffix.lower() in (".jsonl", ".parquet"):
            self.manifest = path
        else:
            raise InputError(f"source {path}: neither a folder nor a .jsonl or .parquet manifest; check the path")
        self.folder = self.manifest.parent.resolve()
        # Of the rows read so far: the first hundred ignored keys, and whether any row names a split or a group.
        self.unknown_keys: set[str] = set()
        self.split_named = self.group_named = False

    def read_rows(self) -> Iterator[Row | BadRow]:
        """Yield every row in order, one with an invalid field as a `BadRow`, or raise `InputError`."""
        read = self._read_jsonl if self.manifest.suffix.lower() == ".jsonl" else self._read_parquet
        try:
            for number, values in read():
                yield values if isinstance(values, BadRow) else self._check_row(number, values)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"source {self.manifest}: cannot be read: {str(error)[:200]}; write it again") from error

    def read_image(self, path: str) -> bytes:
        """Return the bytes of a regular file inside the source, not larger than an image may be, or raise `BadPath`."""
        target = self.folder / path
        try:
            real = target.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadPath(Reason.MISSING_FILE, path) from error
        except (OSError, RuntimeError) as error:
            raise BadPath(Reason.BAD_PATH, f"{path}: {type(error).__name__}") from error
        if not real.is_relative_to(self.folder):
            raise BadPath(Reason.OUTSIDE_SOURCE, path)
        try:
            status = real.stat()
            if not stat.S_ISREG(status.st_mode):
                raise BadPath(Reason.NOT_REGULAR, path)
            if status.st_size > MAX_BYTES:
                raise BadPath(Reason.TOO_MANY_BYTES, f"{path}: {status.st_size} bytes; at most {MAX_BYTES}")
            # Without blocking: a pipe that has replaced an image meanwhile must not stop the run.
            with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
                return file.read(status.st_size)
        except OSError as error:
            raise BadPath(Reason.MISSING_FILE, f"{path}: {error.strerror}") from error

    def _read_jsonl(self) -> Iterator[tuple[int, Any]]:
        with self.manifest.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE)
                    yield number, BadRow(number, None, Reason.BAD_ROW, f"longer than {MAX_LINE} bytes")
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip(b" \t\r\n"):
                    yield number, _parse_line(number, line)

    def _read_parquet(self) -> Iterator[tuple[int, Any]]:
        file = pq.ParquetFile(self.manifest)
        names = file.schema_arrow.names
        known = [name for name in FIELDS if name in names]
        if not known:
            raise InputError(f"source {self.manifest}: has none of the columns {', '.join(FIELDS)}; rename its columns")
        self._note_unknown(name for name in names if name not in FIELDS)
        repeated = [name for name in known if names.count(name) > 1]
        batches = file.iter_batches(batch_size=64, columns=known)
        rows = (batch.slice(at, 1) for batch in batches for at in range(batch.num_rows))
        for number, row in enumerate(rows, start=1):
            if repeated:
                yield number, BadRow(number, None, Reason.DUPLICATE_KEY, f"two columns {repeated[0]}")
                continue
            try:
                (values,) = row.to_pylist()
            except (ValueError, OverflowError) as error:  # invalid UTF-8, times out of range
                values = BadRow(number, None, Reason.BAD_ROW, f"cannot be read: {error}"[:200])
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
            paths = tuple(_parse_path(path) for path in (values.get("original"), *candidates))
            return Row(number, name, values["aspect"], answer, reasoning, split, group, paths)
        except BrokenRule as error:
            return BadRow(number, name, error.reason, error.detail)


class BadPath(BrokenRule):
    """A path that leads to no image of the source."""


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


def _parse_path(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH or SURROGATE.search(value):
        raise BrokenRule(Reason.BAD_PATH, f"{shorten(value)}: not a path")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or re.search(r"\0|\\|://|^data:|^file:", value):
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
