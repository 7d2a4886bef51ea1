"""The KFP faces of evaluate: of a retraining, and of one model alone."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def evaluate(
    snapshot: Input[Dataset],
    sft_answers: Input[list[Dataset]],
    answers: Input[list[Dataset]],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    config: dict[str, Any],
    evaluation: Output[Dataset],
    baseline: Output[Dataset],
    scores: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> None:
    """Score the final model's answers on the untouched split, and the SFT model's."""
    from pathlib import Path

    from components.evaluate.step import run
    from components.running import numbered, running
    from components.showing import show_scores
    from hardcase.config import EvaluateConfig

    settings = EvaluateConfig.model_validate(config)
    inputs = {"snapshot": snapshot, **numbered("sft_answers", sft_answers), **numbered("answers", answers)}
    outputs = {"evaluation": evaluation, "baseline": baseline, "scores": scores}
    with running("evaluate", scratch, inputs, outputs, code=code, seed=seed, config=config):
        run(
            Path(snapshot.path),
            store,
            [Path(shard.path) for shard in answers],
            [Path(shard.path) for shard in sft_answers],
            settings,
            seed,
            Path(evaluation.path),
            Path(baseline.path),
            Path(scores.path),
        )
        show_scores(metrics, confusion, Path(scores.path), Path(evaluation.path))


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def score(
    snapshot: Input[Dataset],
    answers: Input[list[Dataset]],
    store: str,
    scratch: str,
    code: str,
    seed: int,
    config: dict[str, Any],
    evaluation: Output[Dataset],
    scores: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> None:
    """Score one model's answers."""
    from pathlib import Path

    from components.evaluate.step import run
    from components.running import numbered, running
    from components.showing import show_scores
    from hardcase.config import EvaluateConfig

    settings = EvaluateConfig.model_validate(config)
    inputs = {"snapshot": snapshot, **numbered("answers", answers)}
    outputs = {"evaluation": evaluation, "scores": scores}
    with running("evaluate", scratch, inputs, outputs, code=code, seed=seed, config=config):
        shards, tables = [Path(shard.path) for shard in answers], (Path(evaluation.path), None, Path(scores.path))
        run(Path(snapshot.path), store, shards, [], settings, seed, *tables)
        show_scores(metrics, confusion, Path(scores.path), Path(evaluation.path))
