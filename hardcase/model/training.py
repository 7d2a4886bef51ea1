"""Run TRL's trainers for SFT and GRPO: exact resume from the last complete checkpoint, progress, the log."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hardcase.config import TrainConfig
from hardcase.config.base import Destination
from hardcase.errors import HardcaseError, InputError
from hardcase.lifetime import STOPPED, note_sigterm
from hardcase.model.internvl import gather_weights
from hardcase.model.live import Live
from hardcase.model.validation import EXACT_MATCH, LOSS, Validation
from hardcase.progress import report

logger = logging.getLogger(__name__)
COMPLETE: Final = "complete"
# Layers that LoRA adapts (peft 0.21.2, tuners/lora/model.py:559), as far as our models have them.
ADAPTABLE: Final = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Left out of the log: values that depend on the clock, and those that TRL counts from 0 after a resume.
UNSTABLE: Final = ("runtime", "per_second", "time", "flos", "num_tokens")

# Arguments that must not change for an exact resume. Only GRPO has the last three.
SHAPE: Final = (
    *("world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed"),
    *("num_generations", "steps_per_generation", "num_iterations"),
)


class _TrainedBefore(Exception):
    """The checkpoint is that of the last step, or of one after which training ended early."""


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Report progress, stop before an update that is not finite, mark checkpoints as complete, and end when asked."""

    def __init__(self, trainer: Trainer, what: str, stop: Path, validation: Validation | None) -> None:
        self.trainer, self.what, self.stop, self.validation, self.stopping = trainer, what, stop, validation, False

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        ended = self.validation is not None and self.validation.is_exhausted(state)
        if ended or state.global_step >= state.max_steps:  # where transformers 5.23.0 (trainer.py:1831) trains on
            raise _TrainedBefore

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        report(self.what, state.global_step, state.max_steps)
        asked = torch.tensor(float(self.stop.exists()), device=args.device)
        if self.trainer.accelerator.reduce(asked):  # all processes end after the same step
            self.stopping = control.should_save = True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.not_finite = torch.zeros((), dtype=torch.bool, device=args.device)

        def check_gradient(gradient: torch.Tensor) -> None:
            self.not_finite |= ~gradient.isfinite().all()

        for weight in self.trainer.model.parameters():
            if weight.requires_grad:
                weight.register_hook(check_gradient)
        if engine := getattr(self.trainer, "deepspeed", None):  # it updates before `on_pre_optimizer_step` is called
            engine.step = partial(self._check_and_step, engine.step)

    def _check_and_step(self, step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self.on_pre_optimizer_step()
        step(*args, **kwargs)

    def on_pre_optimizer_step(self, *args: Any, **_: Any) -> None:
        if self.not_finite:
            raise HardcaseError(
                f"{self.what}: the gradient of step {self.trainer.state.global_step + 1} is not finite, so nothing was "
                f"updated; lower `learning_rate`, and run again to resume from the last checkpoint"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes a part
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero:
            (folder / COMPLETE).write_text(json.dumps(_read_shape(args)), encoding="utf-8")
        if self.stopping:
            PartialState().wait_for_everyone()  # one that ends early would take the others with it
            logger.warning("%s: stopped after step %d; run again to resume", self.what, state.global_step)
            sys.exit(STOPPED)


def _read_shape(args: TrainingArguments) -> dict[str, int]:
    return {name: getattr(args, name) for name in SHAPE if hasattr(args, name)}


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove incomplete ones."""
    paths = set(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    for path in (incomplete := {path for path in paths if not (path / COMPLETE).exists()}):
        shutil.rmtree(path)
    return max(paths - incomplete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def train(
    trainer: Trainer, what: str, stop: Path, validation: Validation | None = None, to: Destination | None = None
) -> list[dict[str, Any]]:
    """Train to the end, from the last complete checkpoint if there is one, and return the log: one dict a logged step.

    Afterwards the trainer's model has all weights, with adapters merged. The log is the same if training was stopped
    and resumed. Resuming with other arguments is an `InputError`. If the file `stop` exists, or at SIGTERM, the step at
    work is finished and saved, and the process exits with 143. With `validation` training may end early.
    `to` is where metrics are shown meanwhile.
    """
    trainer.add_callback(_Watch(trainer, what, stop, validation))
    if to and to.kind != "none":
        trainer.add_callback(Live(trainer, to, what))
    if validation:
        trainer.add_callback(validation)  # after the one that completes checkpoints
    trainer.remove_callback(PrinterCallback)  # the log is returned
    with PartialState().main_process_first():
        checkpoint = find_last_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is not None:
        before, now = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")), _read_shape(trainer.args)
        if changed := [f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]:
            raise InputError(
                f"{checkpoint}: written with {'; '.join(changed)}; restore that to resume, or remove it to start over"
            )
        logger.info("%s: resuming from %s", what, checkpoint.name)
        if not (is_peft_model(trainer.model) or trainer.is_deepspeed_enabled):
            # Checkpoints use the hub's names of weights, which Trainer does not translate and therefore ignores.
            saved = type(trainer.model).from_pretrained(checkpoint, dtype=trainer.model.dtype)
            trainer.model.load_state_dict(saved.state_dict())
    # One of several processes is asked by the file alone: torchrun sends SIGTERM when another one has failed.
    with nullcontext() if "RANK" in os.environ else note_sigterm(stop):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except _TrainedBefore:
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    if validation:
        validation.restore()
    if is_peft_model(trainer.model):
        with gather_weights(trainer.model, change=True):
            trainer.model.merge_and_unload()
    return [
        {
            "phase": what,
            **{key: value for key, value in sorted(entry.items()) if value is not None and not key.endswith(UNSTABLE)},
        }
        for entry in trainer.state.log_history
        if {"loss", LOSS, EXACT_MATCH} & entry.keys()
    ]


def build_common_arguments(config: TrainConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Build the arguments that TRL's trainers have in common; checkpoints are written to `folder`."""
    return {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
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
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "log_level": "error",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def freeze(model: nn.Module, config: TrainConfig) -> None:
    """Freeze the vision tower, or let it learn, as `config` says. Adapters are added later."""
    model.get_submodule("model.vision_tower").requires_grad_(not config.freeze_vision_tower)


def build_lora_config(config: TrainConfig, model: torch.nn.Module, what: str) -> LoraConfig | None:
    """Build peft's configuration of LoRA, if it is configured; `what` is the section of the profile.

    A pattern that matches no layer of `model`, or one that takes no adapter, is an `InputError`.
    """
    if (lora := config.lora) is None:
        return None
    built = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    if lora.targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return built
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ADAPTABLE)}
    chosen = [name for name, _ in model.named_modules() if check_target_module_exists(built, name)]
    if config.freeze_vision_tower and (inside := [name for name in chosen if ".vision_tower." in name]):
        raise InputError(
            f"{what}.lora.targets {lora.targets!r} matches {inside[0]!r}, but {what}.freeze_vision_tower is set; "
            "change one"
        )
    if not chosen or set(chosen) - set(layers):
        wrong = next((f"{name!r}, which" for name in chosen if name not in layers), "no layer that")
        raise InputError(
            f"{what}.lora.targets {lora.targets!r} matches {wrong} {'takes' if not chosen else 'does not take'} an "
            f"adapter; match whole names such as {next(iter(layers), '')!r}"
        )
    return built


def write_log(log: list[dict[str, Any]], path: Path) -> None:
    """Write the training log as JSON lines, from the main process only."""
    if PartialState().is_main_process:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
