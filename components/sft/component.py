"""The KFP face of sft."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(
    snapshot: Input[Dataset],
    validation: Input[Artifact],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    model: dict[str, Any],
    config: dict[str, Any],
    trained: Output[Model],
    log: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Fine-tune on the annotated training samples, once the snapshot is found valid."""
    from pathlib import Path

    from components.launching import in_processes
    from components.running import running
    from components.sft.step import run
    from components.showing import show_training
    from hardcase.config import ModelConfig, SftConfig
    from hardcase.data.store import open_store
    from hardcase.model.internvl import checkpoint_folder

    start, settings = ModelConfig.model_validate(model), SftConfig.model_validate(config)
    inputs, outputs = {"snapshot": snapshot, "validation": validation}, {"trained": trained, "log": log}
    base: dict[str, str] = {}
    with running("sft", scratch, inputs, outputs, base, code=code, seed=seed, model=model, config=config) as private:
        if (folder := checkpoint_folder(start)) is not None:
            base["base_model"] = open_store(store).put_folder(folder)
        in_processes(
            run,
            settings,
            private,
            snapshot=Path(snapshot.path),
            store=store,
            model=start,
            seed=seed,
            model_out=Path(trained.path),
            log=Path(log.path),
        )
        show_training(metrics, Path(log.path), {"loss": "loss", "mean_token_accuracy": "token accuracy"})
