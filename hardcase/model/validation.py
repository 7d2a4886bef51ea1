"""Validate a model during its training on rows that no step trains on: the best weights, and an early stop.

All decisions follow from the log, which checkpoints hold, so a resumed training decides as one that was never stopped.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models.utils import unwrap_model_for_generation

from hardcase.config import GrpoConfig, SftConfig
from hardcase.errors import HardcaseError
from hardcase.model.engine import LocalEngine, generate_answers
from hardcase.model.internvl import gather_weights
from hardcase.task.answer import parse_answer
from hardcase.task.sample import Sample

logger = logging.getLogger(__name__)
LOSS: Final = "eval_loss"
EXACT_MATCH: Final = "eval_exact_match"
PREFIX: Final = "best-"


class Validation(TrainerCallback):  # type: ignore[misc]
    """Validate every `config.validate_steps` steps and after the last one; keep the best weights; stop early.

    Args:
        trainer: its `evaluate` is replaced, so that its random numbers are those of a training without validation.
        measure: returns exact match, the same in every process. With None the loss on the trainer's own `eval_dataset`
            decides.
        config: of the training.
    """

    def __init__(
        self, trainer: Trainer, config: SftConfig | GrpoConfig, measure: Callable[[], dict[str, float]] | None = None
    ) -> None:
        self.trainer, self.config, self.measure = trainer, config, measure
        self.metric, self.sign = (EXACT_MATCH, 1) if measure else (LOSS, -1)
        self.folder, self.own_evaluate = Path(trainer.args.output_dir), trainer.evaluate
        trainer.evaluate = self.evaluate

    def evaluate(self, *_: Any, **__: Any) -> Mapping[str, float]:
        """Validate and log the result; keep the weights if they are the best so far; stop without an improvement."""
        trainer, metrics = self.trainer, dict[str, float]()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            if trainer.eval_dataset is not None:
                metrics |= self.own_evaluate()
            if self.measure:
                metrics |= (measured := self.measure())
                trainer.log(measured)
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        if self.config.keep == "best" and self.find_best(trainer.state) == trainer.state.global_step:
            self._keep()
        trainer.control.should_training_stop |= self.is_exhausted(trainer.state)
        return metrics

    def find_best(self, state: TrainerState) -> int:
        """Return the first step with the best result; 0 without any."""
        entries = [entry for entry in state.log_history if self.metric in entry]
        return int(max(entries, key=lambda entry: self.sign * entry[self.metric])["step"]) if entries else 0

    def is_exhausted(self, state: TrainerState) -> bool:
        """Return whether `patience` validations in a row did not improve."""
        best = self.find_best(state)
        later = [entry for entry in state.log_history if self.metric in entry and entry["step"] > best]
        return self.config.patience is not None and len(later) >= self.config.patience

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        every = self.config.validate_steps or state.max_steps
        control.should_evaluate = state.global_step % every == 0 or state.global_step >= state.max_steps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:  # only now no checkpoint needs the others
            best = self._path(self.find_best(state))
            for path in set(self.folder.glob(f"{PREFIX}*")) - {best}:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}.safetensors"

    def _list_weights(self) -> dict[str, torch.nn.Parameter]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def _keep(self) -> None:
        path, weights = self._path(self.trainer.state.global_step), self._list_weights()
        with gather_weights(self.trainer.model):
            if self.trainer.state.is_world_process_zero:
                draft = path.with_suffix(".part")
                save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, draft)
                draft.replace(path)
        self.trainer.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Return to the best weights, if `config.keep` says so and they are not the last."""
        state = self.trainer.state
        best = self.find_best(state)
        if self.config.keep != "best" or best in (0, state.global_step):
            return
        logger.info("returning to the weights of step %d, the best on the held-out rows", best)
        if not (path := self._path(best)).exists():
            raise HardcaseError(f"{path}: the weights of the best step are gone; remove the folder and train again")
        stored = load_file(path)
        with gather_weights(self.trainer.model, change=True), torch.no_grad():
            for name, weight in self._list_weights().items():
                weight.copy_(stored[name])


def measure_exact_match(
    trainer: Any, samples: Sequence[Sample], batch_size: int, max_new_tokens: int
) -> dict[str, float]:
    """Return the share of samples that the model in training answers exactly, greedily, each process a part of them."""
    accelerator = trainer.accelerator
    own = samples[accelerator.process_index :: accelerator.num_processes]
    with unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model:
        completions = generate_answers(
            LocalEngine(model, trainer.processing_class),
            own,
            copies=1,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=0,
            seed=0,
            what="validating",
        )
    right = [parse_answer(row[0].text) == sample.truth for sample, row in zip(own, completions, strict=True)]
    gathered = gather_object(right)
    return {EXACT_MATCH: sum(gathered) / len(gathered)}
