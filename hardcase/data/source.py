"""A user's source: a folder with `manifest.jsonl` or `manifest.parquet` and pictures, read row by row (`formats.md`).

Nothing outside the folder is read, and a row that breaks a rule becomes a `BadRow`, never an exception.
"""

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.data.images import MAX_BYTES
from hardcase.data.quarantine import BadRow, Reason
from hardcase.errors import InputError
from hardcase.task.answer import TAGS, has_visible
from hardcase.task.sample import ASPECTS, LETTERS

FIELDS: Final = ("id", "aspect", "original", "candidates", "answer", "reasoning", "split", "group")
# Of one row of JSONL; far more than any row of these fields needs.
MAX_LINE: Final = 2**25
MAX_ID: Final = 256
MAX_PATH: Final = 4096
MAX_REASONING: Final = 16_384
MAX_UNKNOWN: Final = 100
SPECIAL: Final = re.compile(r"<\|[^|<>\s]+\|>|</?(?:img|quad|ref|box|s)>|<(?:IMG_CONTEXT|video|pad|unk)>")
# JSON can spell half a character; no file can keep it.
HALF: Final = re.compile("[\ud800-\udfff]")
MANIFESTS: Final = ("manifest.jsonl", "manifest.parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose fields keep the rules; its pictures are not looked at yet.

    Attributes:
        row: physical line, or Parquet row, from 1.
        paths: the original and four candidates, relative to the source.
        split: `train`, `eval`, or None where no row carries one.
        group: as the row names it, or None.
    """

    row: int
    id: str
    aspect: str
    answer: tuple[str, ...]
    reasoning: str | None
    split: str | None
    group: str | None
    paths: tuple[str, ...]


class Source:
    """An opened source.

    Attributes:
        folder: everything that it refers to lies inside.
        manifest: the file of rows.
        unknown_keys: keys of rows read so far that have no meaning here, the first hundred.
        split_named: whether a row read so far names a split.
        group_named: whether a row read so far names a group.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder or a manifest file.

        Raises:
            InputError: there is no manifest, or there are two.
        """
        if path.is_dir():
            found = [path / name for name in MANIFESTS if (path / name).is_file()]
            if len(found) != 1:
                what = "both manifest.jsonl and manifest.parquet" if found else "no manifest.jsonl or manifest.parquet"
                raise InputError(f"source {path}: {what}; a folder must hold exactly one of them")
            (self.manifest,) = found
        elif path.is_file() and path.suffix.lower() in (".jsonl", ".parquet"):
            self.manifest = path
        else:
            raise InputError(f"source {path}: no folder and no .jsonl or .parquet manifest there; check the path")
        self.folder = self.manifest.parent.resolve()
        self.unknown_keys: set[str] = set()
        self.split_named = self.group_named = False

    def read_rows(self) -> Iterator[Row | BadRow]:
        """Every row, in order; what is bad about its fields makes it a `BadRow`.

        Raises:
            InputError: the manifest cannot be read.
        """
        raw = self._jsonl if self.manifest.suffix.lower() == ".jsonl" else self._parquet
        try:
            for number, values in raw():
                yield values if isinstance(values, BadRow) else self._checked(number, values)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"source {self.manifest}: cannot be read: {str(error)[:200]}; write it anew") from error

    def read_image(self, path: str) -> bytes:
        """The bytes of one picture.

        Raises:
            BadPath: it is not a regular file inside the source, or larger than a picture may be.
        """
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
            facts = real.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise BadPath(Reason.NOT_REGULAR, path)
            if facts.st_size > MAX_BYTES:
                raise BadPath(Reason.TOO_MANY_BYTES, f"{path}: {facts.st_size} bytes; at most {MAX_BYTES}")
            # Not blocking: a pipe put in a picture's place meanwhile must not stop the run.
            with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
                return file.read(facts.st_size)
        except OSError as error:
            raise BadPath(Reason.MISSING_FILE, f"{path}: {error.strerror}") from error

    def _jsonl(self) -> Iterator[tuple[int, Any]]:
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
                    yield number, _parsed(number, line)

    def _parquet(self) -> Iterator[tuple[int, Any]]:
        file = pq.ParquetFile(self.manifest)
        names = file.schema_arrow.names
        known = [name for name in FIELDS if name in names]
        if not known:
            raise InputError(f"source {self.manifest}: has none of the columns {', '.join(FIELDS)}; name them so")
        self._ignore(name for name in names if name not in FIELDS)
        twice = [name for name in known if names.count(name) > 1]
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=known):
            for at in range(batch.num_rows):
                number += 1
                if twice:
                    yield number, BadRow(number, None, Reason.DUPLICATE_KEY, f"two columns {twice[0]}")
                    continue
                try:
                    (values,) = batch.slice(at, 1).to_pylist()
                except (ValueError, OverflowError) as error:  # text that is no UTF-8, times out of range
                    values = BadRow(number, None, Reason.BAD_ROW, f"cannot be read: {error}"[:200])
                yield number, values

    def _ignore(self, keys: Iterable[str]) -> None:
        for key in keys:
            if len(self.unknown_keys) < MAX_UNKNOWN:
                self.unknown_keys.add(HALF.sub("\N{REPLACEMENT CHARACTER}", key[:MAX_ID]))

    def _checked(self, number: int, values: dict[str, Any]) -> Row | BadRow:
        self._ignore(key for key in values if key not in FIELDS)
        self.split_named |= values.get("split") in ("train", "eval")
        self.group_named |= isinstance(values.get("group"), str)
        name = _id(values.get("id"))
        try:
            if name is None:
                raise BadField(Reason.BAD_ID, f"{_shown(values.get('id'))}: not printable text of 1 to {MAX_ID}")
            if values.get("aspect") not in ASPECTS:
                raise BadField(Reason.BAD_ASPECT, f"{_shown(values.get('aspect'))}: not one of {', '.join(ASPECTS)}")
            candidates = values.get("candidates")
            if not isinstance(candidates, list) or len(candidates) != len(LETTERS):
                raise BadField(Reason.BAD_PATH, f"candidates {_shown(candidates)}: not a list of four paths")
            return Row(
                row=number,
                id=name,
                aspect=values["aspect"],
                answer=_answer(values),
                reasoning=_reasoning(values.get("reasoning")),
                split=_split(values.get("split")),
                group=_group(values.get("group")),
                paths=tuple(_path(path) for path in (values.get("original"), *candidates)),
            )
        except BadField as error:
            return BadRow(number, name, error.reason, error.detail)


class BadField(Exception):
    """A field of a row that breaks a rule."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class BadPath(BadField):
    """A path that leads to no picture of the source."""


def _parsed(number: int, line: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise BadField(Reason.DUPLICATE_KEY, "a key occurs twice")
        return values

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def integer(digits: str) -> int | float:
        # Python refuses to read very long ones, which a key unknown here may hold; as a float it suits no field.
        return int(digits) if len(digits) <= MAX_ID else float(digits)

    try:
        values = json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=constant, parse_int=integer)
    except BadField as error:
        return BadRow(number, None, error.reason, error.detail)
    except (ValueError, RecursionError) as error:
        return BadRow(number, None, Reason.BAD_ROW, f"not a JSON object in UTF-8: {error}"[:200])
    if not isinstance(values, dict):
        return BadRow(number, None, Reason.BAD_ROW, "not a JSON object")
    return values


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable() else None


def _path(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH or HALF.search(value):
        raise BadField(Reason.BAD_PATH, f"{_shown(value)}: not a path")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or re.search(r"\0|\\|://|^data:|^file:", value):
        raise BadField(Reason.BAD_PATH, f"{_shown(value)}: must be relative, without `..`, and no URL")
    return value


def _answer(values: dict[str, Any]) -> tuple[str, ...]:
    answer = values.get("answer")
    letters = answer if isinstance(answer, list) else None
    if letters is None or any(letter not in LETTERS for letter in letters) or len(set(letters)) < len(letters):
        raise BadField(Reason.BAD_ANSWER, f"{_shown(answer)}: not a list of distinct letters A to D")
    return tuple(sorted(letters))


def _reasoning(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_REASONING or not has_visible(value):
        raise BadField(Reason.BAD_REASONING, f"not plain text of 1 to {MAX_REASONING} characters")
    if any(tag in value for tag in TAGS) or SPECIAL.search(value) or HALF.search(value):
        raise BadField(Reason.BAD_REASONING, "holds a tag of the task or a special token")
    return value


def _split(value: Any) -> str | None:
    if value not in (None, "train", "eval"):
        raise BadField(Reason.BAD_SPLIT, f"{_shown(value)}: not train or eval")
    split: str | None = value
    return split


def _group(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value and not HALF.search(value)):
        return value
    raise BadField(Reason.BAD_GROUP, f"{_shown(value)}: not text")
