"""The KFP component of rollout."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def rollout(
    snapshot: str,
    model: str,
    place: dict[str, str],
    gpus: str,
    seed: int,
    shards: dict[str, int],
    config: dict[str, Any],
) -> str:
    """Let the SFT model answer the training samples, k times each."""
    from hardcase.config import MineConfig
    from hardcase.data.completions import merge_completions
    from hardcase.runtime.devices import require_gpus
    from hardcase.runtime.processes import in_shards
    from hardcase.runtime.running import running
    from hardcase.steps.rollout import run

    inputs = {"snapshot": snapshot, "sft_model": model}
    number, nodes = int(shards["shards"]), int(shards["nodes"])
    # What is drawn at the border of two shards depends on their number (docs/decisions/0009).
    known: dict[str, Any] = {"seed": seed, "section": "mine", "config": config, "shards": number}
    with running("rollout", place, inputs, **known) as work:
        require_gpus(gpus)
        tables = in_shards(
            run,
            number,
            nodes,
            scratch=work.folder,
            written="rollouts",
            snapshot=work.input("snapshot"),
            store=place["store"],
            model=work.input("sft_model"),
            config=MineConfig.model_validate(config),
            seed=seed,
        )
        merge_completions(tables, work.output("rollouts"))
    return work.attestation
