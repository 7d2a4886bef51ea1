"""sft: from nothing or a checkpoint to a model that reasons, by supervised fine-tuning on the annotated samples."""

from pathlib import Path

from hardcase.config import ModelConfig, SftConfig
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.internvl import load_initial_model, save_model, set_up_torch
from hardcase.model.rows import select_annotated
from hardcase.model.sft import collect_vocabulary_texts, fine_tune
from hardcase.model.training import write_log


def run(
    snapshot: Path,
    store: str,
    model: ModelConfig,
    config: SftConfig,
    seed: int,
    scratch: Path,
    model_out: Path,
    log: Path,
) -> None:
    """Fine-tune on the training split.

    Args:
        snapshot: the manifest.
        store: where its shards lie.
        model: what to start from.
        config: of the training.
        seed: of weights, order and warm-up.
        scratch: folder for checkpoints; a run that was stopped goes on from what lies there.
        model_out: folder for the model (safetensors, config, processor).
        log: JSON lines, one a logged step.

    Raises:
        InputError: no training sample carries a chain of thought, or the checkpoint cannot be loaded.
    """
    samples = Snapshot.open(snapshot, store).load("train")
    if not select_annotated(samples):
        raise InputError("snapshot: no training row carries `reasoning`; annotate some, SFT learns from those only")
    set_up_torch(seed, config.threads)
    network, processor = load_initial_model(
        model, collect_vocabulary_texts(samples, warm_up=config.warm_up is not None), seed, config.dtype
    )
    entries = fine_tune(network, processor, samples, config, seed, scratch)
    write_log(entries, log)
    save_model(network, processor, model_out)
