"""The KFP component of answer."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def answer(
    snapshot: str,
    model: str,
    place: dict[str, str],
    gpus: str,
    seed: int,
    shards: dict[str, int],
    config: dict[str, Any],
    sft_model: str = "",
) -> str:
    """Let a model answer the untouched split, and the SFT model that it was trained from, if it is given."""
    from hardcase.config import EvaluateConfig
    from hardcase.data.completions import merge_completions
    from hardcase.runtime.devices import require_gpus
    from hardcase.runtime.processes import in_shards
    from hardcase.runtime.running import running
    from hardcase.steps.answer import run

    inputs = {"snapshot": snapshot, "model": model, "sft_model": sft_model}
    with running("answer", place, inputs, seed=seed, section="evaluate", config=config) as work:
        require_gpus(gpus)
        work.output("answers").mkdir()
        for name, role in (("model", "final"), ("sft_model", "sft")):
            if name not in work.materials:
                continue
            tables = in_shards(
                run,
                int(shards["shards"]),
                int(shards["nodes"]),
                scratch=work.folder / role,
                written="answers",
                snapshot=work.input("snapshot"),
                store=place["store"],
                model=work.input(name),
                config=EvaluateConfig.model_validate(config),
                seed=seed,
            )
            merge_completions(tables, work.output("answers") / f"{role}.parquet")
    return work.attestation
