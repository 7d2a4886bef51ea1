"""The KFP face of answer."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def answer(
    snapshot: Input[Dataset],
    model: Input[Model],
    role: str,
    store: str,
    scratch: str,
    code: str,
    seed: int,
    shard: str,
    config: dict[str, Any],
    answers: Output[Dataset],
) -> None:
    """Let a model, `sft` or `final` by its role, answer one shard of the untouched split."""
    from pathlib import Path

    from components.answer.step import run
    from components.running import running, sharded
    from hardcase.config import EvaluateConfig

    settings = EvaluateConfig.model_validate(config)
    inputs, outputs = {"snapshot": snapshot, "model": model}, {"answers": answers}
    step = sharded(f"answer-{role}", shard)
    with running(step, scratch, inputs, outputs, code=code, seed=seed, section="evaluate", config=config) as private:
        run(Path(snapshot.path), store, Path(model.path), settings, seed, shard, private, Path(answers.path))
