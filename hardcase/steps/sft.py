"""sft: from nothing or a checkpoint to a model that reasons, by supervised fine-tuning on the annotated samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardcase.config import ModelConfig, SftConfig
from hardcase.config.base import Destination
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.internvl import checkpoint_folder, load_initial_model, save_model, set_attention, set_up_torch
from hardcase.model.sft import collect_vocabulary_texts, fine_tune
from hardcase.model.training import write_log
from hardcase.runtime.processes import in_processes
from hardcase.runtime.running import open_destination, running


def execute(plan: Mapping[str, Any], snapshot: str, validation: str) -> str:
    """Train on a valid snapshot, and return the sha256 of the step's attestation."""
    base: dict[str, str] = {}
    with running("sft", plan, {"snapshot": snapshot, "validation": validation}, base) as work:
        start = ModelConfig.model_validate(plan["parameters"]["model"])
        if (folder := checkpoint_folder(start)) is not None:
            base["base_model"] = work.store.put_folder(folder)
        in_processes(
            run,
            SftConfig.model_validate(work.config),
            work.folder,
            snapshot=work.input("snapshot"),
            store=plan["store"],
            model=start,
            seed=work.seed,
            model_out=work.outputs / "sft_model",
            log=work.outputs / "sft_log",
            to=open_destination(plan),
        )
    return work.attestation


def run(
    snapshot: Path,
    store: str,
    model: ModelConfig,
    config: SftConfig,
    seed: int,
    scratch: Path,
    model_out: Path,
    log: Path,
    to: Destination | None = None,
) -> None:
    """Fine-tune on the training split; write the model's folder (safetensors, config, processor) and its log.

    A run that was stopped continues from the checkpoints in `scratch`. The log is JSON, a line for each logged step.
    `to` is where metrics are shown.
    """
    train, held_out = Snapshot.open(snapshot, store).open_samples("train", reasoning=True).hold_out(config.hold_out)
    samples, held_out = train.select_annotated(), held_out.select_annotated()
    if not samples:
        raise InputError("snapshot: no training row carries `reasoning`; annotate some, SFT learns from those only")
    if config.validate_steps and not held_out:
        raise InputError("snapshot: no held-out row carries `reasoning`, which SFT validates on; raise sft.hold_out")
    set_up_torch(seed, config.threads)
    network, processor = load_initial_model(
        model, collect_vocabulary_texts(samples, warm_up=config.warm_up is not None), seed, config.dtype
    )
    set_attention(network, config.attention)
    entries = fine_tune(network, processor, samples, config, seed, scratch, held_out, to)
    write_log(entries, log)
    save_model(network, processor, model_out)
