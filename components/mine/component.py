"""The KFP face of mine."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def mine(
    snapshot: Input[Dataset],
    model: Input[Model],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    config: dict[str, Any],
    mined: Output[Dataset],
) -> None:
    """Find the training samples that the SFT model gets wrong: k rollouts of each."""
    from pathlib import Path

    from components.mine.step import run
    from components.running import running
    from hardcase.config import MineConfig

    settings = MineConfig.model_validate(config)
    with running(
        "mine", scratch, {"snapshot": snapshot, "model": model}, {"mined": mined}, code=code, seed=seed, config=config
    ) as private:
        run(Path(snapshot.path), store, Path(model.path), settings, seed, private, Path(mined.path))
