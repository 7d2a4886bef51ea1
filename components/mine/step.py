"""mine: what the SFT model solves always, sometimes, never; k rollouts of every training sample."""

from pathlib import Path

from hardcase.config import MineConfig
from hardcase.data.snapshot import Snapshot
from hardcase.model.engine import answers, open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.model.mining import judge, write_cases


def run(snapshot: Path, store: str, model: Path, config: MineConfig, seed: int, scratch: Path, mined: Path) -> None:
    """Write `mined.parquet`, one row a training sample.

    Args:
        snapshot: the manifest.
        store: where its shards lie.
        model: the SFT model's folder.
        config: of the rollouts and of what counts as hard.
        seed: of the rollouts.
        scratch: folder for what was answered; a run that was stopped goes on from there.
        mined: the table.
    """
    samples = Snapshot.open(snapshot, store).load("train")
    set_up_torch(seed, config.threads)
    rollouts = answers(
        open_engine(config.engine, model, seed),
        samples,
        copies=config.k,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        what="mining",
        kept=scratch / "rollouts",
    )
    judged = zip(samples, rollouts, strict=True)
    write_cases([judge(sample.id, sample.truth, texts, config.hard_below) for sample, texts in judged], mined)
