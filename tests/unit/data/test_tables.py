"""Tables between steps: what a reader cannot read is named, and records of older versions stay readable."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hardcase.data.cases import MinedCase, count_cases, read_cases, write_cases
from hardcase.data.evaluations import read_evaluation, read_flat_evaluation, write_evaluation
from hardcase.data.quarantine import BadRow, Reason, count_quarantine, write_quarantine
from hardcase.data.scores import read_scores
from hardcase.errors import InputError

ROW = {"id": "1", "aspect": "physical_shadow", "group": "g", "truth": ["A"], "answer": None, "text": "?"}


def test_cases_of_the_file_and_of_its_bytes_are_counted_alike(tmp_path: Path) -> None:
    cases = [
        MinedCase("a", ["A", "A"], 1.0, 1.0, hard=False, suspect=False),
        MinedCase("b", ["A", None], 0.5, 0.5, hard=True, suspect=False, cut=1),
        MinedCase("c", [None, None], 0.0, 0.0, hard=False, suspect=True, cut=2),
    ]
    write_cases(cases, tmp_path / "mined")
    assert read_cases(tmp_path / "mined") == read_cases((tmp_path / "mined").read_bytes()) == cases
    counts = {"total": 3, "always_solved": 1, "hard": 1, "suspects": 1, "rollouts": 6, "cut": 3}
    assert count_cases(cases) == counts
    old = pq.read_table(tmp_path / "mined").drop_columns("cut")
    pq.write_table(old, tmp_path / "old")  # as version 0.1.0 wrote it
    assert count_cases(read_cases(tmp_path / "old")) == {**counts, "cut": 0}


def test_quarantine_is_counted_in_the_table_as_when_it_was_written(tmp_path: Path) -> None:
    bad = [
        BadRow(2, None, Reason.BAD_ROW, ""),
        BadRow(1, "a", Reason.ANIMATED, ""),
        BadRow(3, "b", Reason.ANIMATED, ""),
    ]
    written = write_quarantine(bad, tmp_path / "quarantine")
    assert written == count_quarantine(tmp_path / "quarantine") == {"animated": 2, "bad_row": 1}


def test_evaluation_comes_back_from_the_file_and_from_its_bytes(tmp_path: Path) -> None:
    write_evaluation([{**ROW, "dpa": 0.5, "exact": False}], tmp_path / "evaluation")
    table = read_evaluation(tmp_path / "evaluation", "evaluation")
    assert table.to_pylist() == [{**ROW, "dpa": 0.5, "exact": False}]
    assert read_evaluation((tmp_path / "evaluation").read_bytes(), "evaluation").equals(table)


def test_evaluation_with_text_for_numbers_or_without_rows_is_refused_by_name(tmp_path: Path) -> None:
    write_evaluation([{**ROW, "dpa": 0.5, "exact": False}], tmp_path / "evaluation")
    table = pq.read_table(tmp_path / "evaluation")
    wrong = table.set_column(table.column_names.index("dpa"), "dpa", table["text"])
    pq.write_table(wrong, tmp_path / "wrong")
    with pytest.raises(InputError, match=r"evaluation of champion m:1: a column of another type"):
        read_evaluation((tmp_path / "wrong").read_bytes(), "evaluation of champion m:1")
    write_evaluation([], tmp_path / "empty")
    with pytest.raises(InputError, match=r"reference .*empty: holds no rows"):
        read_flat_evaluation(tmp_path / "empty", "reference")


def test_sample_without_group_or_score_stands_alone_and_counts_as_wrong(tmp_path: Path) -> None:
    rows = [{**ROW, "group": None, "dpa": float("nan"), "exact": None}, {**ROW, "id": "2", "dpa": 1.0, "exact": True}]
    write_evaluation(rows, tmp_path / "evaluation")
    flat = read_flat_evaluation(tmp_path / "evaluation", "evaluation")
    assert flat["group"].tolist() == ["sample 1", "g"]
    assert flat[["dpa", "exact", "invalid"]].to_numpy().tolist() == [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


def test_scores_of_older_records_name_the_final_model_as_newer_ones() -> None:
    old, new = ({"samples": 4, key: {"overall": 1.0}, "sft": None} for key in ("grpo", "final"))
    assert read_scores(json.dumps(old).encode()) == read_scores(json.dumps(new).encode()) == new


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_scores_that_are_no_object_are_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="scores: not "):
        read_scores(content)
