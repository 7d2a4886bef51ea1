"""The KFP face of rollout."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def rollout(
    snapshot: Input[Dataset],
    model: Input[Model],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    shard: str,
    config: dict[str, Any],
    rollouts: Output[Dataset],
) -> None:
    """Let the SFT model answer one shard of the training samples, k times each."""
    from pathlib import Path

    from components.rollout.step import run
    from components.running import running, sharded
    from hardcase.config import MineConfig

    settings = MineConfig.model_validate(config)
    inputs, outputs = {"snapshot": snapshot, "model": model}, {"rollouts": rollouts}
    step = sharded("rollout", shard)
    with running(step, scratch, inputs, outputs, code=code, seed=seed, section="mine", config=config) as private:
        run(Path(snapshot.path), store, Path(model.path), settings, seed, shard, private, Path(rollouts.path))
