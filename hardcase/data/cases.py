"""Mined cases (`mined.parquet`): one row a mined sample with the answers of its k rollouts and what they earn."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.data.completions import Completion
from hardcase.task.answer import format_answer, parse_answer
from hardcase.task.reward import DEFAULT_KIND, dpa

SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("mean_reward", pa.float64()),
        ("exact_rate", pa.float64()),
        ("hard", pa.bool_()),
        ("suspect", pa.bool_()),
        ("cut", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class MinedCase:
    """One training sample and the answers of its k rollouts."""

    id: str
    answers: list[str | None]  # each rollout's answer, `AC` or `none`; None where the text was invalid
    mean_reward: float  # mean DPA of the rollouts
    exact_rate: float  # share of the rollouts that were exactly right
    hard: bool  # solved less often than the configured share, yet at least once
    suspect: bool  # never solved
    cut: int | None = None  # rollouts cut at `max_new_tokens`; None in tables of 0.1.0


def draw_mined(count: int, sample: int | None) -> list[int]:
    """Return which of `count` training samples are mined: `sample` of them drawn at random, or all."""
    if sample is None or sample >= count:
        return list(range(count))
    drawn: list[int] = np.random.default_rng(count).choice(count, sample, replace=False).tolist()
    return sorted(drawn)


def judge(id: str, truth: frozenset[str], rollouts: Sequence[Completion], hard_below: float) -> MinedCase:
    """Judge one sample's rollouts: it is hard if solved in less than `hard_below` of them, yet at least once."""
    parsed = [parse_answer(rollout.text) for rollout in rollouts]
    exact = float(np.mean([answer == truth for answer in parsed]))
    return MinedCase(
        id=id,
        answers=[None if answer is None else format_answer(answer) for answer in parsed],
        mean_reward=float(np.mean([dpa(answer, truth, DEFAULT_KIND) for answer in parsed])),
        exact_rate=exact,
        hard=0 < exact < hard_below,
        suspect=exact == 0,
        cut=sum(rollout.cut for rollout in rollouts),
    )


def write_cases(cases: Sequence[MinedCase], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(case) for case in cases], SCHEMA), path)


def read_cases(source: Path | bytes) -> list[MinedCase]:
    table = pq.read_table(pa.BufferReader(source) if isinstance(source, bytes) else source, schema=SCHEMA)
    return [MinedCase(**row) for row in table.to_pylist()]


def count_cases(cases: Sequence[MinedCase]) -> dict[str, int]:
    """Count mined training samples, also those always solved, hard ones and suspects, and rollouts, also those cut."""
    return {
        "total": len(cases),
        "always_solved": sum(case.exact_rate == 1 for case in cases),
        "hard": sum(case.hard for case in cases),
        "suspects": sum(case.suspect for case in cases),
        "rollouts": sum(len(case.answers) for case in cases),
        "cut": sum(case.cut or 0 for case in cases),
    }
