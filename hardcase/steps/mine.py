"""mine: what the SFT model solves always, sometimes, never, by its rollouts of every training sample."""

from pathlib import Path

from hardcase.config import MineConfig
from hardcase.data.cases import judge, write_cases
from hardcase.data.completions import read_completions
from hardcase.data.snapshot import Snapshot


def run(snapshot: Path, store: str, rollouts: Path, config: MineConfig, mined: Path) -> None:
    """Write `mined.parquet`, one row a training sample.

    Args:
        snapshot: the manifest.
        store: where its shards lie.
        rollouts: the SFT model's completions.
        config: of what counts as hard.
        mined: the table.

    Raises:
        HardcaseError: the rollouts are not of the snapshot's samples.
    """
    facts = Snapshot.open(snapshot, store).read_labels("train")
    texts = read_completions([rollouts], [row["id"] for row in facts])
    judged = zip(facts, texts, strict=True)
    write_cases([judge(row["id"], frozenset(row["answer"]), each, config.hard_below) for row, each in judged], mined)
