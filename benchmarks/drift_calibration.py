"""Measure how often drift alarms where nothing changed, and how often it misses a fall of ten points.

Evaluations are simulated: four aspects of different difficulty, samples of their own difficulty, a judge who gets each
letter wrong independently, partial credit by the default definition. A fall is the same judge with more wrong letters,
so many that mean partial credit, or exact match, falls by .10. The samples of the two tables differ, unless a case is
called `same samples`. The decision is the step's own. Writes benchmarks/results/drift_calibration.json.

    python benchmarks/drift_calibration.py [--nulls 1000] [--drops 500]
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from result import write_result

from hardcase.config import DriftConfig
from hardcase.data.evaluations import INVALID
from hardcase.stats.drift import decide
from hardcase.task.answer import format_answer
from hardcase.task.reward import dpa
from hardcase.task.sample import ASPECTS
from hardcase.task.score import SUBSETS

FLAGGED = np.array([[letter in subset for letter in "ABCD"] for subset in SUBSETS])
CODES = (FLAGGED @ [1, 2, 4, 8]).argsort()  # from the bits of an answer to its index in SUBSETS
NAMES = np.array([format_answer(subset) for subset in SUBSETS] + [INVALID], dtype=object)
LENGTHS = np.array(["none" if not subset else str(len(subset)) for subset in SUBSETS] + [INVALID], dtype=object)
CREDIT = np.array([[dpa(answer, truth) for truth in SUBSETS] for answer in [*SUBSETS, None]])
HARDNESS = np.array([0.6, 1.3, 0.8, 1.4])  # wrong letters of each aspect, relative
FLAWED, UNPARSED = 0.45, 0.004
LEVELS = (0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Questions:
    """Hold what is asked: aspects, groups, truths (indices of SUBSETS), and how hard each sample is."""

    aspect: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    hardness: npt.NDArray[np.float64]


def draw_questions(generator: np.random.Generator, size: int, views: int = 1, first: int = 0) -> Questions:
    """Draw `size` samples, `views` of each group; the samples of a group are alike in difficulty."""
    group = np.arange(size) // views
    aspect = generator.integers(len(ASPECTS), size=size)
    own, shared = generator.gamma(1.5, 1 / 1.5, size), generator.gamma(2, 1 / 2, group[-1] + 1)[group]
    truth = CODES[(generator.random((size, 4)) < FLAWED) @ [1, 2, 4, 8]]
    return Questions(aspect, group + first, truth, HARDNESS[aspect] * (own if views == 1 else shared))


def simulate_answers(generator: np.random.Generator, asked: Questions, error: float) -> pd.DataFrame:
    """Return the table of a judge: each letter is wrong with probability `error`, scaled by the sample's hardness."""
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
def find_error(column: str, level: float) -> float:
    """Return the rate of wrong letters at which the mean of `column` is `level`."""
    low, high = 0.0, 1.0
    asked = draw_questions(np.random.default_rng(0), 40_000)
    for _ in range(24):
        middle = (low + high) / 2
        mean = simulate_answers(np.random.default_rng(1), asked, middle)[column].mean()
        low, high = (middle, high) if mean > level else (low, middle)
    return (low + high) / 2


def list_alarms(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    """Return the names of the tests of the step that alarm."""
    return [verdict.name for verdict in decide(reference, current, DriftConfig()) if verdict.drifted]


def list_default_alarms(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    """Return the columns on which Evidently's own choice of test and threshold alarms."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    alarms = []
    for column in ("dpa", "exact", "invalid", "answer_size", "answer", "aspect"):
        numeric = column in ("dpa", "exact", "invalid")
        kind = ColumnType.Numerical if numeric else ColumnType.Categorical
        test = get_stattest(reference[column], current[column], kind, None)
        if test(reference[column], current[column], kind, None).drifted:
            alarms.append(column)
    return alarms


def measure_rate(
    repeats: int,
    size: int,
    errors: tuple[float, float],
    seed: int,
    views: int = 1,
    same: bool = False,
    judge: Callable[[pd.DataFrame, pd.DataFrame], list[str]] = list_alarms,
) -> dict[str, Any]:
    """Return the share of comparisons that alarm, and the share of each test."""
    alarms, by_test = 0, Counter[str]()
    for repeat in range(repeats):
        generator = np.random.default_rng([seed, repeat])
        asked = draw_questions(generator, size, views)
        asked_later = asked if same else draw_questions(generator, size, views, first=size)
        names = judge(
            simulate_answers(generator, asked, errors[0]), simulate_answers(generator, asked_later, errors[1])
        )
        alarms += bool(names)
        by_test.update(names)
    shares = {name: by_test[name] / repeats for name in sorted(by_test)}
    return {"repeats": repeats, "alarms": alarms / repeats, "by_test": shares}


def calibrate(size: int, level: float, nulls: int, drops: int) -> list[dict[str, Any]]:
    """Measure every case at one size and level of exact match."""
    still = find_error("exact", level)
    credit = float(
        simulate_answers(np.random.default_rng(1), draw_questions(np.random.default_rng(0), 40_000), still)[
            "dpa"
        ].mean()
    )
    worse = {"partial credit": find_error("dpa", credit - 0.1), "exact match": find_error("exact", level - 0.1)}
    seed = size * 100 + round(level * 100)
    cases = {
        "nothing changed": measure_rate(nulls, size, (still, still), seed),
        "nothing changed, groups of 4": measure_rate(nulls, size, (still, still), seed, views=4),
        "nothing changed, same samples": measure_rate(nulls, size, (still, still), seed, same=True),
    }
    for name, error in worse.items():
        cases[f"{name} falls by .10"] = measure_rate(drops, size, (still, error), seed)
        cases[f"{name} falls by .10, same samples"] = measure_rate(drops, size, (still, error), seed, same=True)
    default: dict[str, Any] = {"repeats": drops, "size": size, "seed": seed, "judge": list_default_alarms}
    cases["nothing changed, Evidently's defaults"] = measure_rate(errors=(still, still), **default)
    cases["partial credit falls by .10, Evidently's defaults"] = measure_rate(
        errors=(still, worse["partial credit"]), **default
    )
    setting = {"size": size, "exact_match": level, "partial_credit": round(credit, 3)}
    return [{"case": name, **setting, **rates} for name, rates in cases.items()]


def main() -> None:
    """Measure all cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nulls", type=int, default=1000)
    parser.add_argument("--drops", type=int, default=500)
    arguments = parser.parse_args()
    settings = [*product((300, 600, 700, 800), LEVELS), (5000, 0.7)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(calibrate, *setting, arguments.nulls, arguments.drops) for setting in settings]
        cases = [case for future in futures for case in future.result()]
    still = [case for case in cases if case["case"].startswith("nothing changed") and case["case"][-8:] != "defaults"]
    alarms = float(np.average([case["alarms"] for case in still], weights=[case["repeats"] for case in still]))
    write_result(
        "drift_calibration",
        value=alarms,
        baseline=0.01,
        unit="share of comparisons of two samples of one distribution that alarm, over all cases; baseline: allowed",
        command=" ".join(["drift_calibration.py", *sys.argv[1:]]),
        cases=cases,
    )
    for case in cases:
        print(f"{case['alarms']:.4f}  {case['size']:5d}  {case['exact_match']:.2f}  {case['case']}  {case['by_test']}")


if __name__ == "__main__":
    main()
