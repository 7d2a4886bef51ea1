"""Decide which rows with valid images are accepted, and into which split: duplicates, groups, leaks.

The rows are in a SQLite database on disk, so that memory does not grow with their text. Per row, memory holds a few
numbers while groups are formed.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hardcase.data.near import THUMBNAIL_BYTES, find_near
from hardcase.data.quarantine import BadRow, Reason
from hardcase.store.digest import bytes_digest

TABLE: Final = """
CREATE TABLE rows (
    row INTEGER PRIMARY KEY, id TEXT, content TEXT, question TEXT, answer TEXT, original TEXT, phash TEXT,
    thumbnail BLOB, split TEXT, named TEXT, reason TEXT, detail TEXT, label INTEGER
);
CREATE TABLE groups (label INTEGER PRIMARY KEY, name TEXT, accepted INTEGER, evaluated INTEGER);
"""
LISTED: Final = 5  # rows that a detail names


class RowSummary(NamedTuple):
    """What acceptance needs of a row with valid images."""

    row: int
    id: str
    content: str  # digest of all fields and images
    question: str  # digest of images and aspect
    answer: str
    original: str  # sha256 of the original image
    phash: str  # perceptual hash of the original, 64 bits in hexadecimal digits
    thumbnail: bytes  # the original, small
    split: str | None
    group: str | None


class Assignment(NamedTuple):
    """Split and group of an accepted row."""

    row: int
    split: str
    group: str


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """How accepted rows fall into groups."""

    groups: int
    largest: int  # rows of the largest group
    splits: dict[str, int]  # rows by split


class Acceptance:
    """The rows of a source in a new database file; it is closed by `close`."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # A stopped ingest fills the database again, so nothing needs to survive a crash.
        self._database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {TABLE}")
        self._database.create_function("rank", 1, _rank, deterministic=True)
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, rows: Iterable[RowSummary]) -> None:
        """Add rows with valid images."""
        self._database.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * 10)}, NULL, NULL, NULL)", rows)

    def refuse(self, rows: Iterable[BadRow]) -> None:
        """Add rows that are quarantined already; they link no others."""
        values = ((row.row, row.id, row.reason, row.detail) for row in rows)
        self._database.executemany("INSERT INTO rows (row, id, reason, detail) VALUES (?, ?, ?, ?)", values)

    def decide(self, eval_share: float, group_distance: int, *, split_named: bool, group_named: bool) -> None:
        """Assign each accepted row to a group and a split, and quarantine the others.

        A row gets the first reason that applies: missing split, id used twice, contradiction, duplicate, leak.
        `split_named` and `group_named` tell whether any row of the source, also an invalid one, names a split or a
        group. Without splits, `eval_share` of the groups is for evaluation. Without groups, originals that look the
        same are one group: `hardcase.data.near` says how `group_distance` counts.
        """
        if split_named:
            self._quarantine("split IS NULL", Reason.BAD_SPLIT, "other rows name a split, this one does not")
        self._refuse_repeated_ids()
        self._refuse_repeated_questions()
        # Quarantined rows count too: grouping is transitive, and such a row may link two others.
        self._name_groups(None if group_named else group_distance)
        if split_named:
            self._database.execute(
                "UPDATE groups SET evaluated = 1 "
                "WHERE label IN (SELECT label FROM rows WHERE reason IS NULL AND split = 'eval')"
            )
            self._quarantine(
                "split = 'train' AND label IN (SELECT label FROM groups WHERE evaluated)",
                Reason.SPLIT_LEAK,
                "its group has rows in the evaluation split",
            )
        else:
            self._choose_eval_groups(eval_share)

    def list_assignments(self) -> Iterator[Assignment]:
        """Yield the assignments of accepted rows in the order of the rows."""
        query = (
            "SELECT row, CASE WHEN evaluated THEN 'eval' ELSE 'train' END, name "
            "FROM rows JOIN groups USING (label) WHERE reason IS NULL ORDER BY row"
        )
        yield from map(Assignment._make, self._select(query))

    def list_quarantined(self) -> Iterator[BadRow]:
        """Yield the quarantined rows in the order of the rows."""
        for row, id, reason, detail in self._select(
            "SELECT row, id, reason, detail FROM rows WHERE reason IS NOT NULL ORDER BY row"
        ):
            yield BadRow(row, id, Reason(reason), detail)

    def count_groups(self) -> GroupCounts:
        """Count the groups of accepted rows, and the rows of each split."""
        query = "SELECT count(*), evaluated FROM rows JOIN groups USING (label) WHERE reason IS NULL GROUP BY label"
        sizes = list(self._select(query))
        evaluated = sum(size for size, evaluated in sizes if evaluated)
        rows = sum(size for size, _ in sizes)
        splits = {"train": rows - evaluated, "eval": evaluated}
        return GroupCounts(len(sizes), max((size for size, _ in sizes), default=0), splits)

    def _select(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with closing(self._database.execute(query, values)) as cursor:
            yield from cursor

    def _quarantine(self, condition: str, reason: Reason, detail: str, values: tuple[Any, ...] = ()) -> None:
        query = f"UPDATE rows SET reason = ?, detail = ? WHERE reason IS NULL AND {condition}"
        self._database.execute(query, (reason, detail, *values))

    def _find_repeated(self, column: str, differing: str) -> list[tuple[str, int, int]]:
        """Return the values of a column on several rows, the first of these, and how many values of `differing`."""
        query = (
            f"SELECT {column}, min(row), count(DISTINCT {differing}) FROM rows WHERE reason IS NULL "
            f"GROUP BY {column} HAVING count(*) > 1"
        )
        return list(self._select(query))

    def _format_numbers(self, column: str, value: str) -> str:
        query = f"SELECT row FROM rows WHERE reason IS NULL AND {column} = ? ORDER BY row LIMIT {LISTED + 1}"
        numbers = [str(row) for (row,) in self._select(query, (value,))]
        return ", ".join(numbers[:LISTED]) + (", …" if len(numbers) > LISTED else "")

    def _refuse_repeated_ids(self) -> None:
        self._database.execute("CREATE INDEX ids ON rows (id)")
        for id, _, contents in self._find_repeated("id", "content"):
            if contents > 1:
                detail = f"rows {self._format_numbers('id', id)} have this id and differ"
                self._quarantine("id = ?", Reason.DUPLICATE_ID, detail, (id,))

    def _refuse_repeated_questions(self) -> None:
        self._database.execute("CREATE INDEX questions ON rows (question)")
        for question, first, answers in self._find_repeated("question", "answer"):
            if answers > 1:
                detail = f"rows {self._format_numbers('question', question)}: same images and aspect, other answers"
                self._quarantine("question = ?", Reason.CONTRADICTION, detail, (question,))
            else:
                detail = f"same images, aspect and answer as row {first}"
                self._quarantine("question = ? AND row > ?", Reason.DUPLICATE_SAMPLE, detail, (question, first))

    def _name_groups(self, distance: int | None) -> None:
        """Label each row with its connected component, whose name is the smallest of its rows' names.

        A row's name is its own group, or the sha256 of its original where it names none.
        """
        rows = np.array(
            [row for (row,) in self._select("SELECT row FROM rows WHERE original IS NOT NULL ORDER BY row")]
        )
        edges = [self._find_equal(rows, column) for column in ("named", "original")]
        if distance is not None:
            edges += [self._find_equal(rows, "phash, thumbnail"), self._find_near_originals(rows, distance)]
        first, second = np.concatenate(edges, axis=1)
        graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(rows), len(rows)))
        labels = connected_components(graph, directed=False)[1] if len(rows) else rows
        pairs = zip(labels.tolist(), rows.tolist(), strict=True)
        self._database.executemany("UPDATE rows SET label = ? WHERE row = ?", pairs)
        self._database.execute(
            "INSERT INTO groups SELECT label, min(coalesce(named, original)), max(reason IS NULL), 0 FROM rows "
            "WHERE label IS NOT NULL GROUP BY label"
        )
        self._database.execute("CREATE INDEX labels ON rows (label)")

    def _find_equal(self, rows: npt.NDArray[np.int64], columns: str) -> npt.NDArray[np.int64]:
        """Return two arrays of indices: rows whose values of some columns are equal, and the first of these."""
        query = (
            f"SELECT row, min(row) OVER (PARTITION BY {columns}) FROM rows "
            f"WHERE original IS NOT NULL AND {columns.split(',', maxsplit=1)[0]} IS NOT NULL"
        )
        pairs = np.fromiter(self._select(query), dtype=np.dtype((np.int64, 2)))
        return np.searchsorted(rows, pairs.T)

    def _find_near_originals(self, rows: npt.NDArray[np.int64], distance: int) -> npt.NDArray[np.int64]:
        distinct = "SELECT min(row), phash, thumbnail FROM rows WHERE original IS NOT NULL GROUP BY phash, thumbnail"
        ((count,),) = self._select(f"SELECT count(*) FROM ({distinct})")
        firsts, hashes = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.uint64)
        thumbnails = np.empty((count, THUMBNAIL_BYTES), dtype=np.uint8)
        for at, (row, phash, thumbnail) in enumerate(self._select(f"{distinct} ORDER BY 1")):
            firsts[at], hashes[at], thumbnails[at] = row, int(phash, 16), np.frombuffer(thumbnail, np.uint8)
        return np.searchsorted(rows, firsts)[find_near(hashes, thumbnails, distance)]

    def _choose_eval_groups(self, share: float) -> None:
        """Choose groups for evaluation by a hash of their names, so that a group keeps its split from run to run."""
        self._database.execute("UPDATE groups SET evaluated = (rank(name) < ?) WHERE accepted", (share,))
        ((groups, chosen),) = self._select("SELECT count(*), sum(evaluated) FROM groups WHERE accepted")
        if 0 < share < 1 and groups > 1 and chosen in (0, groups):
            order = "ASC" if chosen == 0 else "DESC"
            ((label,),) = self._select(
                f"SELECT label FROM groups WHERE accepted ORDER BY rank(name) {order}, name {order} LIMIT 1"
            )
            self._database.execute("UPDATE groups SET evaluated = ? WHERE label = ?", (chosen == 0, label))


def _rank(name: str) -> float:
    return int(bytes_digest(name.encode("utf-8", "surrogatepass"))[:13], 16) / 16**13
