"""Decide which rows with valid images are accepted, and into which split: duplicates, groups, leaks."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hardcase.data.quarantine import BadRow, Reason
from hardcase.store.digest import bytes_digest


@dataclass(frozen=True, slots=True)
class RowSummary:
    """What is held of a row between the two passes over its images."""

    row: int
    id: str
    content: str  # digest of all fields and images
    question: str  # digest of images and aspect
    answer: tuple[str, ...]
    original: str  # sha256 of the original image
    phash: int  # perceptual hash of the original, 64 bits
    split: str | None
    group: str | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Split and group of an accepted row."""

    split: str
    group: str


def accept_rows(
    rows: Sequence[RowSummary], eval_share: float, group_distance: int, *, split_named: bool, group_named: bool
) -> tuple[dict[int, Assignment], list[BadRow]]:
    """Return the assignment of each accepted row, by row number, and the quarantined rows.

    A row gets the first reason that applies: missing split, id used twice, contradiction, duplicate, leak.
    `split_named` and `group_named` tell whether any row of the source, also an invalid one, names a split or a group.
    Without splits, `eval_share` of the groups is for evaluation. Without groups, originals whose perceptual hashes
    differ in at most `group_distance` of 64 bits are one group.
    """
    bad: dict[int, BadRow] = {}

    def quarantine(row: RowSummary, reason: Reason, detail: str) -> None:
        bad[row.row] = BadRow(row.row, row.id, reason, detail)

    def list_remaining() -> list[RowSummary]:
        return [row for row in rows if row.row not in bad]

    for row in rows:
        if split_named and row.split is None:
            quarantine(row, Reason.BAD_SPLIT, "other rows name a split, this one does not")
    for same in _find_repeated(list_remaining(), "id"):
        if len({row.content for row in same}) > 1:
            for row in same:
                quarantine(row, Reason.DUPLICATE_ID, f"rows {_format_numbers(same)} have this id and differ")
    for same in _find_repeated(list_remaining(), "question"):
        if len({row.answer for row in same}) > 1:
            detail = f"rows {_format_numbers(same)}: same images and aspect, other answers"
            for row in same:
                quarantine(row, Reason.CONTRADICTION, detail)
        else:
            for row in same[1:]:
                quarantine(row, Reason.DUPLICATE_SAMPLE, f"same images, aspect and answer as row {same[0].row}")
    # Quarantined rows count too: grouping is transitive, and such a row may link two others.
    group_of = dict(zip(rows, _name_groups(rows, None if group_named else group_distance), strict=True))
    remaining = list_remaining()
    if split_named:
        eval_groups = {group_of[row] for row in remaining if row.split == "eval"}
        for row in remaining:
            if row.split == "train" and group_of[row] in eval_groups:
                quarantine(row, Reason.SPLIT_LEAK, "its group has rows in the evaluation split")
    else:
        eval_groups = _choose_eval_groups({group_of[row] for row in remaining}, eval_share)
    assignments = {
        row.row: Assignment("eval" if group_of[row] in eval_groups else "train", group_of[row])
        for row in list_remaining()
    }
    return assignments, list(bad.values())


def _find_repeated(rows: Iterable[RowSummary], field: str) -> list[list[RowSummary]]:
    by_value: dict[Hashable, list[RowSummary]] = defaultdict(list)
    for row in rows:
        by_value[getattr(row, field)].append(row)
    return [same for same in by_value.values() if len(same) > 1]


def _format_numbers(rows: Sequence[RowSummary]) -> str:
    return ", ".join(str(row.row) for row in rows[:5]) + (", …" if len(rows) > 5 else "")


def _name_groups(rows: Sequence[RowSummary], distance: int | None) -> list[str]:
    """Return each row's group: the smallest name in its connected component.

    A row's name is its own group, or the sha256 of its original where it names none.
    """
    pairs: list[tuple[int, int]] = []
    for field in ("group", "original"):
        first: dict[str, int] = {}
        values = [(index, getattr(row, field)) for index, row in enumerate(rows)]
        pairs += [(first.setdefault(value, index), index) for index, value in values if value is not None]
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if distance is not None:
        near = _find_near_pairs(np.array([row.phash for row in rows], dtype=np.uint64), distance)
        edges = np.concatenate([edges, near])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(rows), len(rows)))
    labels = connected_components(graph, directed=False)[1] if rows else []
    names: dict[int, str] = {}
    for row, label in zip(rows, labels, strict=True):
        own = row.group if row.group is not None else row.original
        names[label] = min(own, names.get(label, own))
    return [names[label] for label in labels]


def _find_near_pairs(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """Return pairs of indices whose hashes differ in at most `distance` bits.

    Cut into distance + 1 bands, two such hashes agree in at least one band. Only those are compared.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    first = np.zeros(len(unique), dtype=np.int64)
    first[inverse[::-1]] = np.arange(len(hashes))[::-1]
    pairs = [np.stack([first[inverse], np.arange(len(hashes))], 1)]
    cuts = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(cuts):
        band = (unique >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(band[order][1:] != band[order][:-1]) + 1
        for members in np.split(order, starts):
            for at, member in enumerate(members[:-1]):
                others = members[at + 1 :]
                near = others[np.bitwise_count(unique[others] ^ unique[member]) <= distance]
                pairs.append(np.stack([np.full(len(near), first[member]), first[near]], 1))
    return np.concatenate(pairs)


def _choose_eval_groups(names: set[str], share: float) -> set[str]:
    """Return the groups for evaluation, by a hash of their names, so that a group keeps its split from run to run."""
    rank = {name: int(bytes_digest(name.encode("utf-8", "surrogatepass"))[:13], 16) / 16**13 for name in names}
    chosen = {name for name in names if rank[name] < share}
    if 0 < share < 1 and len(names) > 1:
        ordered = sorted(names, key=lambda name: (rank[name], name))
        chosen = (chosen or set(ordered[:1])) - (set(ordered[-1:]) if len(chosen) == len(names) else set())
    return chosen
