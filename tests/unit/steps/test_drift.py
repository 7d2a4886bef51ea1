"""Drift: quiet where nothing changed, loud at a fall of ten points, the same bytes twice."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardcase.config import DriftConfig
from hardcase.data.evaluations import SCHEMA, read_flat_evaluation
from hardcase.errors import InputError
from hardcase.stats.drift import BUDGET, decide
from hardcase.steps.drift import run
from hardcase.task.reward import dpa
from hardcase.task.sample import ASPECTS, LETTERS

SUBSETS = [frozenset(letters) for size in range(5) for letters in combinations(LETTERS, size)]


def evaluation(path: Path, seed: int, wrong: float, rows: int = 700, invalid: float = 0.0) -> Path:
    """A judge who gets each letter wrong with the chance `wrong`."""
    rng = np.random.default_rng(seed)
    table = []
    for row in range(rows):
        truth = SUBSETS[rng.integers(16)]
        flips = frozenset(letter for letter in LETTERS if rng.random() < wrong)
        answer = None if rng.random() < invalid else truth ^ flips
        table.append(
            {
                "id": f"s{seed}-{row}",
                "aspect": ASPECTS[rng.integers(4)],
                "group": f"g{seed}-{row}",
                "truth": sorted(truth),
                "answer": None if answer is None else sorted(answer),
                "text": "",
                "dpa": dpa(answer, truth),
                "exact": answer == truth,
            }
        )
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), path)
    return path


def alarms(folder: Path, pairs: int, before: float, after: float) -> int:
    found = 0
    for pair in range(pairs):
        first = read_flat_evaluation(evaluation(folder / "first.parquet", 2 * pair, before), "first")
        second = read_flat_evaluation(evaluation(folder / "second.parquet", 2 * pair + 1, after), "second")
        found += any(verdict.drifted for verdict in decide(first, second, DriftConfig()))
    return found


def test_two_samples_of_one_judge_do_not_alarm_and_a_fall_of_ten_points_does(tmp_path: Path) -> None:
    # Exact match .92^4 = .72 and .883^4 = .61; the rates themselves are measured by benchmarks/drift_calibration.py.
    assert alarms(tmp_path, 30, 0.08, 0.08) <= 1
    assert alarms(tmp_path, 20, 0.08, 0.117) >= 19


def test_the_budget_is_spent_and_no_more() -> None:
    assert sum(BUDGET.values()) == pytest.approx(1, abs=1e-9)


def test_invalid_answers_alarm(tmp_path: Path) -> None:
    first = read_flat_evaluation(evaluation(tmp_path / "a.parquet", 0, 0.1), "a")
    second = read_flat_evaluation(evaluation(tmp_path / "b.parquet", 1, 0.1, invalid=0.15), "b")
    drifted = {verdict.name for verdict in decide(first, second, DriftConfig()) if verdict.drifted}
    assert "invalid answers" in drifted


def test_without_a_reference_there_is_nothing_to_compare(tmp_path: Path) -> None:
    current = evaluation(tmp_path / "e.parquet", 0, 0.1)
    run(current, None, DriftConfig(), tmp_path / "drift.json", tmp_path / "drift.html")
    found = json.loads((tmp_path / "drift.json").read_text())
    assert found == {"drifted": False, "reference": None, "tests": []}
    assert "no earlier evaluation" in (tmp_path / "drift.html").read_text()


def test_evidentlys_page_and_our_json_say_the_same_and_twice_the_same(tmp_path: Path) -> None:
    reference = evaluation(tmp_path / "reference.parquet", 0, 0.08)
    current = evaluation(tmp_path / "current.parquet", 1, 0.2)
    for name in ("one", "two"):
        run(current, reference, DriftConfig(), tmp_path / f"{name}.json", tmp_path / f"{name}.html")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    assert not any(mark in page for mark in ('src="http', "src='http"))
    found = json.loads((tmp_path / "one.json").read_text())
    drifted = {test["name"] for test in found["tests"] if test["drifted"]}
    assert found["drifted"] and {"partial credit", "exact match"} <= drifted
    assert [test["name"] for test in found["tests"]] == list(BUDGET)
    for name in BUDGET:
        assert f"{name}: p-value, errors clustered by group" in page


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b"id,aspect\n"])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.parquet"):
        run(tmp_path / "bad.parquet", None, DriftConfig(), tmp_path / "drift.json", tmp_path / "drift.html")
    assert not (tmp_path / "drift.json").exists()


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    whole = pq.read_table(evaluation(tmp_path / "whole.parquet", 0, 0.1, rows=5))
    pq.write_table(whole.drop_columns(["dpa"]), tmp_path / "part.parquet")
    with pytest.raises(InputError, match="no column dpa"):
        read_flat_evaluation(tmp_path / "part.parquet", "evaluation")


def test_the_step_starts_without_torch() -> None:
    code = "import sys, hardcase.steps.drift; sys.exit('torch' in sys.modules or 'evidently' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
