"""rollout: k answers of the SFT model to each training sample, for mining; one shard of the samples."""

from pathlib import Path

from hardcase.config import MineConfig
from hardcase.data.completions import write_completions
from hardcase.data.snapshot import Snapshot
from hardcase.model.engine import generate_answers, open_engine
from hardcase.model.internvl import set_up_torch


def run(
    snapshot: Path, store: str, model: Path, config: MineConfig, seed: int, shard: str, scratch: Path, rollouts: Path
) -> None:
    """Write the completions of one shard.

    Args:
        snapshot: the manifest.
        store: where its shards lie.
        model: the SFT model's folder.
        config: of the rollouts.
        seed: of the rollouts.
        shard: which one of how many: `1/1` is all.
        scratch: folder for what was answered; a run that was stopped goes on from there.
        rollouts: the table.
    """
    first, samples = Snapshot.open(snapshot, store).load_shard("train", shard)
    set_up_torch(seed, config.threads)
    texts = generate_answers(
        open_engine(config.engine, model, seed),
        samples,
        copies=config.k,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        what="rolling out",
        kept=scratch / "rollouts",
        first=first,
    )
    write_completions([sample.id for sample in samples], texts, rollouts)
