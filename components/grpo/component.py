"""The KFP face of grpo."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def grpo(
    snapshot: Input[Dataset],
    model: Input[Model],
    mined: Input[Dataset],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    config: dict[str, Any],
    trained: Output[Model],
    log: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Train with HCM-GRPO from the SFT model on all training samples."""
    from pathlib import Path

    from components.grpo.step import run
    from components.launching import in_processes
    from components.running import running
    from components.showing import show_training
    from hardcase.config import GrpoConfig

    settings = GrpoConfig.model_validate(config)
    inputs, outputs = {"snapshot": snapshot, "model": model, "mined": mined}, {"trained": trained, "log": log}
    with running("grpo", scratch, inputs, outputs, code=code, seed=seed, config=config) as private:
        in_processes(
            run,
            settings,
            private,
            snapshot=Path(snapshot.path),
            store=store,
            model=Path(model.path),
            mined=Path(mined.path),
            seed=seed,
            model_out=Path(trained.path),
            log=Path(log.path),
        )
        shown = {"reward": "mean reward", "frac_reward_zero_std": "groups without spread", "entropy": "entropy a token"}
        show_training(metrics, Path(log.path), shown)
