"""Mined cases: what k rollouts said of each training sample (`mined.parquet`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    ]
)


@dataclass(frozen=True, slots=True)
class MinedCase:
    """What k rollouts said of one training sample.

    Attributes:
        id: of the sample.
        answers: each rollout's answer, `AC` or `none`; None where the text was invalid.
        mean_reward: mean DPA of the rollouts.
        exact_rate: share of the rollouts that were exactly right.
        hard: solved less often than the configured share, yet at least once.
        suspect: never solved.
    """

    id: str
    answers: list[str | None]
    mean_reward: float
    exact_rate: float
    hard: bool
    suspect: bool


def judge(id: str, truth: frozenset[str], texts: Sequence[str], hard_below: float) -> MinedCase:
    """Turn one sample's rollouts into a mined case, hard if solved in less than `hard_below` of them."""
    parsed = [parse_answer(text) for text in texts]
    exact = float(np.mean([answer == truth for answer in parsed]))
    return MinedCase(
        id=id,
        answers=[None if answer is None else format_answer(answer) for answer in parsed],
        mean_reward=float(np.mean([dpa(answer, truth, DEFAULT_KIND) for answer in parsed])),
        exact_rate=exact,
        hard=0 < exact < hard_below,
        suspect=exact == 0,
    )


def write_cases(cases: Sequence[MinedCase], path: Path) -> None:
    """`mined.parquet`: one row a sample."""
    pq.write_table(pa.Table.from_pylist([asdict(case) for case in cases], SCHEMA), path)


def read_cases(path: Path) -> list[MinedCase]:
    """What `write_cases` wrote."""
    return [MinedCase(**row) for row in pq.read_table(path, schema=SCHEMA).to_pylist()]
