"""The KFP face of evaluate."""

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
    import json
    from pathlib import Path

    import pyarrow.parquet as pq

    from components.evaluate.step import run
    from components.running import numbered, running
    from components.showing import show_confusion, show_numbers
    from hardcase.config import EvaluateConfig
    from hardcase.task.sample import LETTERS

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
        found = json.loads(Path(scores.path).read_text(encoding="utf-8"))
        parts = {"final": found["grpo"], "sft": found["sft"], "chance": found["chance"]}
        show_numbers(
            metrics,
            {f"{part} {name}": each[name] for part, each in parts.items() for name in ("overall", "exact_match")},
        )
        show_confusion(confusion, pq.read_table(evaluation.path).to_pylist(), LETTERS)
