"""The KFP component of sft."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(
    snapshot: str,
    validation: str,
    place: dict[str, str],
    gpus: str,
    seed: int,
    start: dict[str, Any],
    config: dict[str, Any],
) -> str:
    """Fine-tune on the annotated training samples, once the snapshot is found valid."""
    from hardcase.config import ModelConfig, SftConfig
    from hardcase.model.internvl import checkpoint_folder
    from hardcase.runtime.devices import require_gpus
    from hardcase.runtime.processes import in_processes
    from hardcase.runtime.running import running
    from hardcase.steps.sft import run

    inputs = {"snapshot": snapshot, "validation": validation}
    base: dict[str, str] = {}
    with running("sft", place, inputs, base, seed=seed, model=start, config=config) as work:
        require_gpus(gpus)
        first = ModelConfig.model_validate(start)
        if (folder := checkpoint_folder(first)) is not None:
            base["base_model"] = work.store.put_folder(folder)
        in_processes(
            run,
            SftConfig.model_validate(config),
            work.folder,
            snapshot=work.input("snapshot"),
            store=place["store"],
            model=first,
            seed=seed,
            model_out=work.output("sft_model"),
            log=work.output("sft_log"),
        )
    return work.attestation
