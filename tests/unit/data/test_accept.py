"""Duplicates, groups, splits, leaks: which rows get in and where they go."""

import random
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardcase.data.accept import Acceptance, Assignment, RowSummary
from hardcase.data.near import THUMBNAIL_BYTES
from hardcase.data.quarantine import Reason

SPREAD = random.Random(0)


def fact(row: int, **changes: Any) -> RowSummary:
    values: dict[str, Any] = {
        "row": row,
        "id": f"id {row}",
        "content": f"content {row}",
        "question": f"question {row}",
        "answer": "A",
        "original": f"{row:064x}",
        "phash": f"{SPREAD.getrandbits(64):016x}",
        "thumbnail": bytes(THUMBNAIL_BYTES),
        "split": None,
        "group": None,
    }
    return RowSummary(**{**values, **changes})


def sorted_out(
    facts: list[RowSummary], share: float = 0.25, distance: int = 4
) -> tuple[dict[int, Assignment], dict[int, str]]:
    with tempfile.TemporaryDirectory() as folder, closing(Acceptance(Path(folder) / "rows")) as acceptance:
        acceptance.add(facts)
        acceptance.decide(
            share,
            distance,
            split_named=any(each.split for each in facts),
            group_named=any(each.group for each in facts),
        )
        places = {place.row: place for place in acceptance.list_assignments()}
        bad = {each.row: str(each.reason) for each in acceptance.list_quarantined()}
        counts = acceptance.count_groups()
    assert sorted([*places, *bad]) == sorted(each.row for each in facts)  # neither both nor neither
    assert list(places) == sorted(places)
    assert list(bad) == sorted(bad)
    sizes = Counter(place.group for place in places.values())
    assert (counts.groups, counts.largest) == (len(sizes), max(sizes.values(), default=0))
    splits = Counter(place.split for place in places.values())
    assert counts.splits == {"train": splits["train"], "eval": splits["eval"]}
    return places, bad


def test_nothing_goes_wrong_with_nothing() -> None:
    assert sorted_out([]) == ({}, {})


def test_one_id_on_rows_that_differ_is_bad_everywhere() -> None:
    places, bad = sorted_out([fact(1, id="x"), fact(2), fact(3, id="x"), fact(4, id="x")])
    assert list(places) == [2]
    assert bad == dict.fromkeys((1, 3, 4), Reason.DUPLICATE_ID)


def test_the_same_row_again_stays_once() -> None:
    facts = [fact(row, id="x", content="same", question="same") for row in (1, 2, 3)]
    places, bad = sorted_out(facts)
    assert list(places) == [1]
    assert bad == dict.fromkeys((2, 3), Reason.DUPLICATE_SAMPLE)


def test_one_question_with_two_answers_is_bad_everywhere() -> None:
    places, bad = sorted_out([fact(1, question="q"), fact(2, question="q", answer=""), fact(3, question="q"), fact(4)])
    assert list(places) == [4]
    assert bad == dict.fromkeys((1, 2, 3), Reason.CONTRADICTION)


def test_one_question_with_one_answer_stays_once() -> None:
    places, bad = sorted_out([fact(5, question="q"), fact(7, question="q")])
    assert (list(places), bad) == ([5], {7: Reason.DUPLICATE_SAMPLE})


def test_rows_without_a_split_are_bad_where_others_have_one() -> None:
    places, bad = sorted_out([fact(1, split="train"), fact(2), fact(3, split="eval")])
    assert {row: place.split for row, place in places.items()} == {1: "train", 3: "eval"}
    assert bad == {2: Reason.BAD_SPLIT}


def test_named_splits_are_kept_whatever_the_share() -> None:
    facts = [fact(row, split="eval" if row % 3 else "train") for row in range(1, 40)]
    for share in (0.0, 1.0):
        places, bad = sorted_out(facts, share)
        assert not bad
        assert all(places[each.row].split == each.split for each in facts)


@pytest.mark.parametrize("tie", [{"group": "kettle"}, {"original": "same"}, {"phash": f"{12345:016x}"}])
def test_a_group_in_both_splits_loses_its_train_rows(tie: dict[str, Any]) -> None:
    facts = [
        fact(1, split="train", **tie),
        fact(2, split="eval", **tie),
        fact(3, split="train"),
        fact(4, split="train", **tie),
    ]
    places, bad = sorted_out(facts)
    assert {row: place.split for row, place in places.items()} == {2: "eval", 3: "train"}
    assert bad == {1: Reason.SPLIT_LEAK, 4: Reason.SPLIT_LEAK}


def test_an_evaluation_row_that_is_bad_itself_costs_no_train_row() -> None:
    facts = [
        fact(1, split="train", group="g"),
        *(fact(row, id="twice", split="eval", group="g") for row in (2, 3)),
    ]
    places, bad = sorted_out(facts)
    assert list(places) == [1]
    assert set(bad.values()) == {Reason.DUPLICATE_ID}


def test_groups_tie_through_originals_and_through_rows_put_out() -> None:
    facts = [
        fact(1, group="b", original="o1"),
        fact(2, group="a", original="o1"),
        fact(3, group="a", original="o2"),
        fact(4, original="o2"),
        fact(5, group="c"),
        fact(6, question="q", group="d", original="o3"),
        fact(7, question="q", group="e", original="o3"),
        fact(8, group="e"),
    ]
    places, bad = sorted_out(facts)
    assert bad == {7: Reason.DUPLICATE_SAMPLE}
    assert len({places[row].group for row in (1, 2, 3, 4)}) == 1
    assert places[6].group == places[8].group
    assert len({place.group for place in places.values()}) == 3


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 64])
def test_near_originals_are_one_group_exactly_up_to_the_distance(distance: int) -> None:
    rng = random.Random(distance)
    hashes = [rng.getrandbits(64) for _ in range(30)]
    for each in list(hashes):
        for flips in (1, distance, distance + 1):
            near = each
            for bit in rng.sample(range(64), min(flips, 64)):
                near ^= 1 << bit
            hashes.append(near)
    facts = [fact(row, phash=f"{value:016x}") for row, value in enumerate(hashes, 1)]
    parents = list(range(len(hashes)))

    def top(at: int) -> int:
        while parents[at] != at:
            at = parents[at]
        return at

    for one in range(len(hashes)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= distance:
                parents[top(one)] = top(other)
    places, _ = sorted_out(facts, distance=distance)
    pairs = {(top(row - 1), place.group) for row, place in places.items()}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_near_originals_may_part_where_a_row_names_a_group() -> None:
    facts = [fact(1, phash="0" * 16), fact(2, phash="0" * 16), fact(3, group="g")]
    assert len({place.group for place in sorted_out(facts)[0].values()}) == 3


def test_a_share_of_groups_is_for_evaluation_and_no_group_parts() -> None:
    facts = [fact(row, group=f"g{row // 3}") for row in range(1, 3001)]
    places, bad = sorted_out(facts)
    assert not bad
    sides: dict[str, set[str]] = {}
    for place in places.values():
        sides.setdefault(place.group, set()).add(place.split)
    assert all(len(side) == 1 for side in sides.values())
    assert 0.21 < np.mean([side == {"eval"} for side in sides.values()]) < 0.29


def test_a_group_stays_on_its_side_when_others_come_or_go() -> None:
    facts = [fact(row, group=f"g{row}") for row in range(1, 400)]
    whole = sorted_out(facts)[0]
    part = sorted_out(random.Random(1).sample(facts, 200))[0]
    assert all(whole[row] == place for row, place in part.items())


@pytest.mark.parametrize(
    ("share", "splits"), [(0.0, {"train"}), (1.0, {"eval"}), (0.001, {"train", "eval"}), (0.999, {"train", "eval"})]
)
def test_both_sides_have_a_group_where_there_are_two(share: float, splits: set[str]) -> None:
    places, _ = sorted_out([fact(row, group=f"g{row}") for row in range(1, 6)], share)
    assert {place.split for place in places.values()} == splits


def test_twenty_thousand_rows_are_sorted_in_seconds() -> None:
    rng = np.random.default_rng(0)
    facts = [fact(row, phash=f"{value:016x}") for row, value in enumerate(rng.integers(0, 2**63, 20_000), 1)]
    assert len({place.group for place in sorted_out(facts)[0].values()}) == 20_000
    same = [fact(row, phash="7" * 16) for row in range(1, 20_000)]
    assert len({place.group for place in sorted_out(same)[0].values()}) == 1
