"""What SFT and GRPO share around TRL's trainers: exact resume from the last whole checkpoint, progress, the log."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hardcase.config import TrainConfig
from hardcase.errors import HardcaseError, InputError
from hardcase.model.internvl import gather_weights
from hardcase.progress import report

logger = logging.getLogger(__name__)
COMPLETE: Final = "complete"
# What depends on the machine's clock has no place in a result, nor what TRL counts anew after a resume.
UNSTEADY: Final = ("runtime", "per_second", "time", "flos", "num_tokens")


# What must be the same for a training to go on as if it had never stopped; the last three only GRPO has.
SHAPE: Final = (
    *("world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed"),
    *("num_generations", "steps_per_generation", "num_iterations"),
)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops before a broken update, marks a checkpoint once everything of it is on disk."""

    def __init__(self, trainer: Trainer, what: str) -> None:
        self.trainer, self.what = trainer, what

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        report(self.what, state.global_step, state.max_steps)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.broken = torch.zeros((), dtype=torch.bool, device=args.device)

        def look(gradient: torch.Tensor) -> None:
            self.broken |= ~gradient.isfinite().all()

        for weight in self.trainer.model.parameters():
            if weight.requires_grad:
                weight.register_hook(look)
        if engine := getattr(self.trainer, "deepspeed", None):  # it updates before `on_pre_optimizer_step` is called
            engine.step = partial(self._checked, engine.step)

    def _checked(self, step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self.on_pre_optimizer_step()
        step(*args, **kwargs)

    def on_pre_optimizer_step(self, *args: Any, **_: Any) -> None:
        if self.broken:
            raise HardcaseError(
                f"{self.what}: the gradient of step {self.trainer.state.global_step + 1} is not finite, so nothing was "
                f"updated; lower `learning_rate`, and run again to go on from the last checkpoint"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert args.output_dir is not None
        PartialState().wait_for_everyone()  # each process writes a part
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero:
            (folder / COMPLETE).write_text(json.dumps(_shape(args)), encoding="utf-8")


def _shape(args: TrainingArguments) -> dict[str, int]:
    return {name: getattr(args, name) for name in SHAPE if hasattr(args, name)}


def find_last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; ones that were not are removed."""
    gather_weights = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (path / COMPLETE).exists():
            gather_weights.append(path)
        else:
            shutil.rmtree(path)
    return max(gather_weights, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def train(trainer: Trainer, what: str) -> list[dict[str, Any]]:
    """Train to the end, from the last whole checkpoint if there is one.

    The trainer's model has all weights afterwards, adapters merged into it.

    Args:
        trainer: with `output_dir` for its checkpoints.
        what: the phase's name, for progress and in the log.

    Returns:
        The log: one dict a logged step, the same whether training was stopped and went on or not.

    Raises:
        InputError: the checkpoint is of a training of another shape.
        HardcaseError: a gradient is not finite.
    """
    trainer.add_callback(_Watch(trainer, what))
    trainer.remove_callback(PrinterCallback)  # the log is returned
    with PartialState().main_process_first():
        checkpoint = find_last_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is not None:
        before, now = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")), _shape(trainer.args)
        if changed := [f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]:
            raise InputError(
                f"{checkpoint}: made with {'; '.join(changed)}; set it back to go on, or remove it to begin anew"
            )
        logger.info("%s: going on from %s", what, checkpoint.name)
        if not (is_peft_model(trainer.model) or trainer.is_deepspeed_enabled):
            # Checkpoints carry the hub's names of weights, which Trainer does not translate and so leaves unread.
            saved = type(trainer.model).from_pretrained(checkpoint, dtype=trainer.model.dtype)
            trainer.model.load_state_dict(saved.state_dict())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if is_peft_model(trainer.model):
        with gather_weights(trainer.model, change=True):
            trainer.model.merge_and_unload()
    return [
        {"phase": what, **{key: value for key, value in sorted(entry.items()) if not key.endswith(UNSTEADY)}}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def build_common_arguments(config: TrainConfig, seed: int, folder: Path) -> dict[str, Any]:
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
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "seed": seed,
        "dataloader_num_workers": config.workers,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "log_level": "error",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def build_lora_config(config: TrainConfig) -> LoraConfig | None:
    """LoRA as peft takes it, if it is configured."""
    if (lora := config.lora) is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )


def write_log(log: list[dict[str, Any]], path: Path) -> None:
    """The training log as JSON lines; of several processes the main one writes."""
    if PartialState().is_main_process:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
