"""Which of the rows with whole pictures get in, and on which side of the split: duplicates, groups, leaks."""

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
    """What is kept of a row between the two passes over its pictures.

    Attributes:
        row: from 1.
        id: of the sample.
        content: digest of all its fields and pictures.
        question: digest of its pictures and aspect.
        answer: its letters.
        original: sha256 of the original picture.
        phash: perceptual hash of the original, 64 bits.
        split: as the row names it, or None.
        group: as the row names it, or None.
    """

    row: int
    id: str
    content: str
    question: str
    answer: tuple[str, ...]
    original: str
    phash: int
    split: str | None
    group: str | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where an accepted row goes."""

    split: str
    group: str


def accept_rows(
    facts: Sequence[RowSummary], eval_share: float, group_distance: int, *, split_named: bool, group_named: bool
) -> tuple[dict[int, Assignment], list[BadRow]]:
    """Sort rows into places and quarantine.

    Args:
        facts: every row whose fields and pictures keep the rules.
        eval_share: share of groups for evaluation where no row names a split.
        group_distance: originals whose perceptual hashes differ in at most so many of 64 bits are one group, where no
            row names a group.
        split_named: whether any row of the source names a split.
        group_named: whether any row of the source names a group.

    Returns:
        The place of each accepted row, and the others. Rules in this order, one reason a row: missing split, id used
        twice, contradiction, duplicate, leak.
    """
    bad: dict[int, BadRow] = {}

    def put_out(each: RowSummary, reason: Reason, detail: str) -> None:
        bad[each.row] = BadRow(each.row, each.id, reason, detail)

    def left() -> list[RowSummary]:
        return [each for each in facts if each.row not in bad]

    for each in facts:
        if split_named and each.split is None:
            put_out(each, Reason.BAD_SPLIT, "other rows name a split, this one does not")
    for same in _by(left(), "id"):
        if len({each.content for each in same}) > 1:
            for each in same:
                put_out(each, Reason.DUPLICATE_ID, f"rows {_numbers(same)} have this id and differ")
    for same in _by(left(), "question"):
        if len({each.answer for each in same}) > 1:
            for each in same:
                put_out(each, Reason.CONTRADICTION, f"rows {_numbers(same)}: same pictures and aspect, other answers")
        else:
            for each in same[1:]:
                put_out(each, Reason.DUPLICATE_SAMPLE, f"same pictures, aspect and answer as row {same[0].row}")
    # Over all rows, also those just put out: one may be what ties two others together.
    named = dict(zip(facts, _groups(facts, None if group_named else group_distance), strict=True))
    rest = left()
    names = [named[each] for each in rest]
    if split_named:
        judged = {name for each, name in zip(rest, names, strict=True) if each.split == "eval"}
        for each, name in zip(rest, names, strict=True):
            if each.split == "train" and name in judged:
                put_out(each, Reason.SPLIT_LEAK, "its group has rows in the evaluation split")
        sides = [str(each.split) for each in rest]
    else:
        chosen = _evaluated(set(names), eval_share)
        sides = ["eval" if name in chosen else "train" for name in names]
    places = {
        each.row: Assignment(side, name)
        for each, side, name in zip(rest, sides, names, strict=True)
        if each.row not in bad
    }
    return places, list(bad.values())


def _by(facts: Iterable[RowSummary], field: str) -> list[list[RowSummary]]:
    found: dict[Hashable, list[RowSummary]] = defaultdict(list)
    for each in facts:
        found[getattr(each, field)].append(each)
    return [same for same in found.values() if len(same) > 1]


def _numbers(facts: Sequence[RowSummary]) -> str:
    return ", ".join(str(each.row) for each in facts[:5]) + (", …" if len(facts) > 5 else "")


def _groups(facts: Sequence[RowSummary], distance: int | None) -> list[str]:
    """Each row's group: the smallest name in its connected component, a name being the row's own or its original's."""
    edges: list[npt.NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
    for key in ("group", "original"):
        first: dict[str, int] = {}
        pairs = [
            (first.setdefault(value, index), index)
            for index, each in enumerate(facts)
            if (value := getattr(each, key)) is not None
        ]
        edges.append(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    if distance is not None:
        edges.append(_near(np.array([each.phash for each in facts], dtype=np.uint64), distance))
    joined = np.concatenate(edges)
    size = len(facts)
    graph = coo_array((np.ones(len(joined)), (joined[:, 0], joined[:, 1])), shape=(size, size))
    labels = connected_components(graph, directed=False)[1] if size else []
    names: dict[int, str] = {}
    for each, label in zip(facts, labels, strict=True):
        own = each.group if each.group is not None else each.original
        names[label] = min(own, names.get(label, own))
    return [names[label] for label in labels]


def _near(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """Pairs of places whose hashes differ in at most `distance` bits.

    Cut into distance + 1 bands, two such hashes agree in one band at least: only those are compared.
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


def _evaluated(names: set[str], share: float) -> set[str]:
    """The groups for evaluation: by a hash of their names, so that a group stays where it was from run to run."""
    rank = {name: int(bytes_digest(name.encode("utf-8", "surrogatepass"))[:13], 16) / 16**13 for name in names}
    chosen = {name for name in names if rank[name] < share}
    if 0 < share < 1 and len(names) > 1:
        ordered = sorted(names, key=lambda name: (rank[name], name))
        chosen = (chosen or set(ordered[:1])) - (set(ordered[-1:]) if len(chosen) == len(names) else set())
    return chosen
