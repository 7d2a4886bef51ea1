"""mine: what the SFT model solves always, sometimes, never; k rollouts of every training sample."""

from pathlib import Path

from hardcase.config import MineConfig
from hardcase.data.snapshot import Snapshot
from hardcase.model.internvl import load_model, set_up_torch
from hardcase.model.mining import judge, write_cases
from hardcase.model.rollout import answers


def run(snapshot: Path, store: str, model: Path, config: MineConfig, seed: int, mined: Path) -> None:
    """Write `mined.parquet`, one row a training sample.

    Args:
        snapshot: the manifest.
        store: where its shards lie.
        model: the SFT model's folder.
        config: of the rollouts and of what counts as hard.
        seed: of the rollouts.
        mined: the table.
    """
    samples = Snapshot.open(snapshot, store).load("train")
    set_up_torch(seed, config.threads)
    network, processor = load_model(model)
    rollouts = answers(
        network,
        processor,
        samples,
        generations=config.k,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        what="mining",
    )
    write_cases([judge(sample.id, sample.truth, texts, config.hard_below) for sample, texts in rollouts], mined)
