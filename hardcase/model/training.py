"""What SFT and GRPO share around TRL's trainers: exact resume from the last whole checkpoint, progress, the log."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, Final

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hardcase.config import TrainConfig
from hardcase.progress import report

logger = logging.getLogger(__name__)
COMPLETE: Final = "complete"
# What depends on the machine's clock has no place in a result, nor what TRL counts anew after a resume.
UNSTEADY: Final = ("runtime", "per_second", "time", "flos", "num_tokens")


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and marks a checkpoint once everything of it is on disk."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        report(self.what, state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert args.output_dir is not None
        (Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; ones that were not are removed."""
    whole = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (path / COMPLETE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def train(trainer: Trainer, what: str) -> list[dict[str, Any]]:
    """Train to the end, from the last whole checkpoint if there is one.

    Args:
        trainer: with `output_dir` for its checkpoints.
        what: the phase's name, for progress and in the log.

    Returns:
        The log: one dict a logged step, the same whether training was stopped and went on or not.
    """
    trainer.add_callback(_Watch(what))
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is not None:
        logger.info("%s: going on from %s", what, checkpoint.name)
        # Checkpoints carry the hub's names of weights, which Trainer does not translate and so leaves unread.
        saved = type(trainer.model).from_pretrained(checkpoint, dtype=trainer.model.dtype)
        trainer.model.load_state_dict(saved.state_dict())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return [
        {"phase": what, **{key: value for key, value in sorted(entry.items()) if not key.endswith(UNSTEADY)}}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def common_arguments(config: TrainConfig, seed: int, folder: Path) -> dict[str, Any]:
    """What the arguments of TRL's trainers have in common; checkpoints go to `folder`."""
    return {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": seed,
        "dataloader_num_workers": config.workers,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        # About 10, and no entry spans a checkpoint: a resumed run logs the same.
        "logging_steps": math.gcd(10, config.save_steps),
        "log_level": "error",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def write_log(log: list[dict[str, Any]], path: Path) -> None:
    """The training log as JSON lines."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
