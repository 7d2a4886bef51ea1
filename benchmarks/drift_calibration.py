"""How often drift alarms where nothing changed, and how often it misses a fall of ten points.

Evaluations are simulated: four aspects of different difficulty, samples of their own difficulty, a judge who gets each
letter wrong independently, partial credit by the default definition. A fall is the same judge with more wrong letters,
so many that mean partial credit, or exact match, falls by .10. The samples of the two tables differ, unless a case is
called `same samples`. The decision is the step's own. Writes benchmarks/results/drift_calibration.json.

    python benchmarks/drift_calibration.py [--nulls 1000] [--drops 500]
"""

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hardcase.config import DriftConfig
from hardcase.data.evaluations import INVALID
from hardcase.stats.drift import decide
from hardcase.task.answer import format_answer
from hardcase.task.reward import dpa
from hardcase.task.sample import ASPECTS
from hardcase.task.score import SUBSETS

RESULT = Path(__file__).parent / "results" / "drift_calibration.json"
FLAGGED = np.array([[letter in subset for letter in "ABCD"] for subset in SUBSETS])
CODES = (FLAGGED @ [1, 2, 4, 8]).argsort()  # from the bits of an answer to its place in SUBSETS
NAMES = np.array([format_answer(subset) for subset in SUBSETS] + [INVALID], dtype=object)
LENGTHS = np.array(["none" if not subset else str(len(subset)) for subset in SUBSETS] + [INVALID], dtype=object)
CREDIT = np.array([[dpa(answer, truth) for truth in SUBSETS] for answer in [*SUBSETS, None]])
HARDNESS = np.array([0.6, 1.3, 0.8, 1.4])  # wrong letters of each aspect, relative
FLAWED, UNPARSED = 0.45, 0.004
LEVELS = (0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Questions:
    """What is asked: aspects, groups, truths (places in SUBSETS), and how hard each sample is."""

    aspect: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    hardness: npt.NDArray[np.float64]


def questions(generator: np.random.Generator, size: int, views: int = 1, first: int = 0) -> Questions:
    """Draw `size` samples, `views` of each group; the samples of a group are alike in difficulty."""
    group = np.arange(size) // views
    aspect = generator.integers(len(ASPECTS), size=size)
    own, shared = generator.gamma(1.5, 1 / 1.5, size), generator.gamma(2, 1 / 2, group[-1] + 1)[group]
    truth = CODES[(generator.random((size, 4)) < FLAWED) @ [1, 2, 4, 8]]
    return Questions(aspect, group + first, truth, HARDNESS[aspect] * (own if views == 1 else shared))


def evaluation(generator: np.random.Generator, asked: Questions, error: float) -> pd.DataFrame:
    """Answer: each letter is wrong with probability `error`, scaled by the sample's hardness."""
    size = len(asked.truth)
    wrong = generator.random((size, 4)) < np.minimum(error * asked.hardness, 0.5)[:, None]
    answer = CODES[(FLAGGED[asked.truth] ^ wrong) @ [1, 2, 4, 8]]
    answer = np.where(generator.random(size) < UNPARSED, len(SUBSETS), answer)
    names = np.array([f"g{number}" for number in asked.group], dtype=object)
    return pd.DataFrame(
        {
            "id": [f"{name}-{row}" for row, name in enumerate(names)],
            "aspect": np.array(ASPECTS, dtype=object)[asked.aspect],
            "group": names,
            "answer": NAMES[answer],
            "answer_size": LENGTHS[answer],
            "dpa": CREDIT[answer, asked.truth],
            "exact": (answer == asked.truth).astype(np.float64),
            "invalid": (answer == len(SUBSETS)).astype(np.float64),
        }
    )


@cache
def error_for(column: str, level: float) -> float:
    """The rate of wrong letters at which the mean of `column` is `level`."""
    low, high = 0.0, 1.0
    asked = questions(np.random.default_rng(0), 40_000)
    for _ in range(24):
        middle = (low + high) / 2
        mean = evaluation(np.random.default_rng(1), asked, middle)[column].mean()
        low, high = (middle, high) if mean > level else (low, middle)
    return (low + high) / 2


def alarmed(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    """The tests of the step that alarm."""
    return [verdict.name for verdict in decide(reference, current, DriftConfig()) if verdict.drifted]


def alarmed_by_default(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    """The columns on which Evidently's own choice of test and threshold alarms."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    found = []
    for column in ("dpa", "exact", "invalid", "answer_size", "answer", "aspect"):
        numeric = column in ("dpa", "exact", "invalid")
        kind = ColumnType.Numerical if numeric else ColumnType.Categorical
        test = get_stattest(reference[column], current[column], kind, None)
        if test(reference[column], current[column], kind, None).drifted:
            found.append(column)
    return found


def rate(
    repeats: int,
    size: int,
    errors: tuple[float, float],
    seed: int,
    views: int = 1,
    same: bool = False,
    judge: Callable[[pd.DataFrame, pd.DataFrame], list[str]] = alarmed,
) -> dict[str, Any]:
    """The share of comparisons that alarm, and which tests did."""
    alarms, by_test = 0, Counter[str]()
    for repeat in range(repeats):
        generator = np.random.default_rng([seed, repeat])
        asked = questions(generator, size, views)
        asked_later = asked if same else questions(generator, size, views, first=size)
        found = judge(evaluation(generator, asked, errors[0]), evaluation(generator, asked_later, errors[1]))
        alarms += bool(found)
        by_test.update(found)
    shares = {name: by_test[name] / repeats for name in sorted(by_test)}
    return {"repeats": repeats, "alarms": alarms / repeats, "by_test": shares}


def calibrate(size: int, level: float, nulls: int, drops: int) -> list[dict[str, Any]]:
    """Every case at one size and level of exact match."""
    still = error_for("exact", level)
    credit = float(
        evaluation(np.random.default_rng(1), questions(np.random.default_rng(0), 40_000), still)["dpa"].mean()
    )
    worse = {"partial credit": error_for("dpa", credit - 0.1), "exact match": error_for("exact", level - 0.1)}
    seed = size * 100 + round(level * 100)
    cases = {
        "nothing changed": rate(nulls, size, (still, still), seed),
        "nothing changed, groups of 4": rate(nulls, size, (still, still), seed, views=4),
        "nothing changed, same samples": rate(nulls, size, (still, still), seed, same=True),
    }
    for name, error in worse.items():
        cases[f"{name} falls by .10"] = rate(drops, size, (still, error), seed)
        cases[f"{name} falls by .10, same samples"] = rate(drops, size, (still, error), seed, same=True)
    default: dict[str, Any] = {"repeats": drops, "size": size, "seed": seed, "judge": alarmed_by_default}
    cases["nothing changed, Evidently's defaults"] = rate(errors=(still, still), **default)
    cases["partial credit falls by .10, Evidently's defaults"] = rate(
        errors=(still, worse["partial credit"]), **default
    )
    place = {"size": size, "exact_match": level, "partial_credit": round(credit, 3)}
    return [{"case": name, **place, **found} for name, found in cases.items()]


def main() -> None:
    """Calibrate and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nulls", type=int, default=1000)
    parser.add_argument("--drops", type=int, default=500)
    arguments = parser.parse_args()
    places = [*product((300, 600, 700, 800), LEVELS), (5000, 0.7)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(calibrate, *place, arguments.nulls, arguments.drops) for place in places]
        cases = [case for future in futures for case in future.result()]
    still = [case for case in cases if case["case"].startswith("nothing changed") and case["case"][-8:] != "defaults"]
    alarms = float(np.average([case["alarms"] for case in still], weights=[case["repeats"] for case in still]))
    result = {
        "name": "drift_calibration",
        "value": alarms,
        "unit": "share of comparisons of two samples of one distribution that alarm, over all cases; baseline: allowed",
        "baseline": 0.01,
        "ratio": alarms / 0.01,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(["python", *sys.argv]),
        "cases": cases,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for case in cases:
        print(f"{case['alarms']:.4f}  {case['size']:5d}  {case['exact_match']:.2f}  {case['case']}  {case['by_test']}")


if __name__ == "__main__":
    main()
