"""The KFP component of grpo."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def grpo(
    snapshot: str,
    sft_model: str,
    mined: str,
    place: dict[str, str],
    gpus: str,
    seed: int,
    config: dict[str, Any],
) -> str:
    """Train with HCM-GRPO from the SFT model on all training samples."""
    from hardcase.config import GrpoConfig
    from hardcase.runtime.devices import require_gpus
    from hardcase.runtime.processes import in_processes
    from hardcase.runtime.running import running
    from hardcase.steps.grpo import run

    inputs = {"snapshot": snapshot, "sft_model": sft_model, "mined": mined}
    with running("grpo", place, inputs, seed=seed, config=config) as work:
        require_gpus(gpus)
        in_processes(
            run,
            GrpoConfig.model_validate(config),
            work.folder,
            snapshot=work.input("snapshot"),
            store=place["store"],
            model=work.input("sft_model"),
            mined=work.input("mined"),
            seed=seed,
            model_out=work.output("model"),
            log=work.output("grpo_log"),
        )
    return work.attestation
