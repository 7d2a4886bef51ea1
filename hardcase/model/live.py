"""Metrics of a training and samples of its completions, shown while it runs: TensorBoard, MLflow or Weights & Biases.

They are for people and prove nothing. A step signs its log instead, which holds neither times nor paths.
"""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hardcase.config.base import Destination
from hardcase.database import database_path
from hardcase.errors import HardcaseError
from hardcase.task.reward import extract_text

logger = logging.getLogger(__name__)
SAMPLE_STEPS: Final = 10  # between two samples of completions
EXPERIMENT: Final = "hardcase training"  # of MLflow
SAMPLES: Final = 8  # of a batch, each of another prompt


class _Board(ABC):
    """Where one phase of training is shown. `fresh` tells whether nothing of it was shown there before."""

    fresh = True

    @abstractmethod
    def __init__(self, to: Destination, phase: str, step: int) -> None:
        """Open what a training at `step` shows of a phase."""

    @abstractmethod
    def show_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Show metrics of a step."""

    @abstractmethod
    def show_samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show completions as a table."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing."""


class _TensorBoard(_Board):
    def __init__(self, to: Destination, phase: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = to.folder / phase
        self.fresh = not any(folder.glob("events.*"))
        # What a killed training showed beyond its last checkpoint is trained again.
        self._writer = SummaryWriter(str(folder), purge_step=None if self.fresh else step + 1)

    def show_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show_samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self._writer.add_text("completions", build_table(rows), step)

    def close(self) -> None:
        self._writer.close()


class _Mlflow(_Board):
    def __init__(self, to: Destination, phase: str, step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow.tracking import MlflowClient

        self._client, name = MlflowClient(to.tracking_uri), f"{to.run}/{phase}"
        known = self._client.get_experiment_by_name(EXPERIMENT)
        # By default files of a database's runs go into the working directory.
        database = database_path(to.tracking_uri)
        files = (database.parent / "mlartifacts").as_uri() if database else None
        experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT, files)
        before = self._client.search_runs([experiment], f"tags.`hardcase.phase` = '{name}'")
        self.fresh = not before
        run = before[0] if before else self._client.create_run(experiment, tags={"hardcase.phase": name}, run_name=name)
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def show_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in metrics.items()])

    def show_samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self._client.log_text(self._run, build_table(rows), f"completions/{step:06}.md")

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb(_Board):
    def __init__(self, to: Destination, phase: str, step: int) -> None:
        import wandb

        to.folder.mkdir(parents=True, exist_ok=True)
        name = f"{to.run}-{phase}"
        self._table = wandb.Table
        project = os.environ.get("WANDB_PROJECT", "hardcase")
        self._run = wandb.init(project=project, id=name, name=name, resume="allow", dir=str(to.folder))
        self.fresh = not self._run.resumed

    def show_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def show_samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        table = self._table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"completions": table}, step=step)

    def close(self) -> None:
        self._run.finish()


BOARDS: Final[dict[str, type[_Board]]] = {"tensorboard": _TensorBoard, "mlflow": _Mlflow, "wandb": _Wandb}


class Live(TrainerCallback):  # type: ignore[misc]
    """Show what a trainer logs, from the main process; that a board fails later is a warning, not the training's end.

    Args:
        trainer: of the phase.
        to: where to show it.
        phase: of the training.
    """

    def __init__(self, trainer: Trainer, to: Destination, phase: str) -> None:
        self.trainer, self.to, self.phase = trainer, to, phase
        self.board: _Board | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        try:
            self.board = BOARDS[self.to.kind](self.to, self.phase, state.global_step)
        except Exception as error:
            raise HardcaseError(
                f"metrics {self.to.kind}: {_describe(error)}; correct its settings, or set `metrics: none`"
            ) from error
        for entry in state.log_history if self.board.fresh else ():  # a training that another run began
            self._show(entry, entry["step"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        self._show(logs or {}, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.board:
            self.board.close()

    def _show(self, logs: Mapping[str, Any], step: int) -> None:
        if self.board is None:
            return
        metrics = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        rows = self._sample() if "reward" in logs and (step - 1) % SAMPLE_STEPS == 0 else []
        try:
            self.board.show_metrics(metrics, step)
            if rows:
                self.board.show_samples(rows, step)
        except Exception as error:
            logger.warning("metrics %s: %s; no more are shown of this training", self.to.kind, _describe(error))
            self.board = None

    def _sample(self) -> list[dict[str, Any]]:
        """Return a completion of each of the first prompts of the last batch, with its rewards."""
        logged = self.trainer._logs  # of all processes (TRL 1.16.0, trainer/grpo_trainer.py:2840)
        columns = {**logged["extra"], **logged["rewards"], "advantage": logged["advantages"]}
        texts = [extract_text(completion) for completion in logged["completion"]]
        chosen = range(0, len(texts), self.trainer.num_generations)[:SAMPLES]
        return [{**{name: column[at] for name, column in columns.items()}, "text": texts[at]} for at in chosen]


def describe_rows(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Return which rows a batch has, as columns of the table of completions."""
    truths = ["".join(sorted(letters)) or "none" for letters in columns["answer"]]
    return {"id": list(columns["id"]), "aspect": list(columns["aspect"]), "truth": truths}


def _describe(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def build_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""

    def line(cells: Sequence[Any]) -> str:
        texts = (f"{cell:.3g}" if isinstance(cell, float) else " ".join(str(cell).split()) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts) + " |"

    return "\n".join([line(list(rows[0])), "|---" * len(rows[0]) + "|", *(line(list(row.values())) for row in rows)])
