"""rollout: k answers of the SFT model to each mined training sample, one shard of the samples at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardcase.config import MineConfig
from hardcase.data.cases import draw_mined
from hardcase.data.completions import merge_completions, write_completions
from hardcase.data.snapshot import Snapshot
from hardcase.model.engine import WINDOW, generate_answers, open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.runtime.processes import in_shards
from hardcase.runtime.running import running


def execute(plan: Mapping[str, Any], snapshot: str, model: str) -> str:
    """Roll out the SFT model on the training split, and return the sha256 of the step's attestation."""
    with running("rollout", plan, {"snapshot": snapshot, "sft_model": model}) as work:
        tables = in_shards(
            run,
            int(plan["shards"]),
            int(plan["nodes"]),
            scratch=work.folder,
            written="rollouts",
            snapshot=work.input("snapshot"),
            store=plan["store"],
            model=work.input("sft_model"),
            config=MineConfig.model_validate(work.config),
            seed=work.seed,
            hold_out=plan["parameters"]["hold_out"],
        )
        merge_completions(tables, work.outputs / "rollouts")
    return work.attestation


def run(
    snapshot: Path,
    store: str,
    model: Path,
    config: MineConfig,
    seed: int,
    shard: str,
    scratch: Path,
    rollouts: Path,
    hold_out: float = 0.0,
) -> None:
    """Write the completions of one shard (`i/n`) of the mined samples; a stopped run continues in `scratch`."""
    train, _ = Snapshot.open(snapshot, store).open_samples("train").hold_out(hold_out)
    mined = train.select(draw_mined(len(train), config.sample))
    first, samples = mined.select_shard(shard, WINDOW * config.batch_size)
    set_up_torch(seed, config.threads)
    texts = generate_answers(
        open_engine(config, model, seed),
        samples,
        copies=config.k,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        what="rolling out",
        folder=scratch / "rollouts",
        first=first,
    )
    write_completions(samples.read_column("id"), texts, rollouts)
