"""HCM-GRPO of a model on samples and what mining said of them, with TRL."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig as TrlGrpoConfig

from hardcase.config import GrpoConfig
from hardcase.model.mining import mined_weights
from hardcase.model.rows import lazy_rows, prompt_row
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.model.training import common_arguments, train
from hardcase.task.reward import dpa_reward
from hardcase.task.sample import Sample


def improve(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    exact_rates: npt.NDArray[np.float64],
    hard: Sequence[bool],
    config: GrpoConfig,
    seed: int,
    checkpoints: Path,
) -> list[dict[str, Any]]:
    """Train `model` in place.

    Args:
        model: to train.
        processor: the model's.
        samples: the training pool.
        exact_rates: mined success rate of each sample.
        hard: mined hard flag of each sample.
        config: of the training.
        seed: of the sampler and the rollouts.
        checkpoints: folder for them.

    Returns:
        The training log.
    """
    uniform = np.full(len(samples), 1 / len(samples))

    @lru_cache(maxsize=2 * config.batch_size)  # a prompt is read once for each of its completions
    def row(index: int) -> dict[str, Any]:
        return {**prompt_row(samples[index]), "hard": float(hard[index])}

    weights = uniform if config.sampling == "uniform" else mined_weights(exact_rates)
    trainer = HCMGRPOTrainer(
        model,
        reward_funcs=partial(dpa_reward, kind=config.reward),
        args=_arguments(config, seed, checkpoints),
        train_dataset=lazy_rows(len(samples), row),
        processing_class=processor,
        weights=weights,
    )
    return train(trainer, "grpo")


def _arguments(config: GrpoConfig, seed: int, folder: Path) -> TrlGrpoConfig:
    return TrlGrpoConfig(
        **common_arguments(config, seed, folder),
        num_generations=config.generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.beta,
        scale_rewards="none",  # the spread of a group says how hard it is: dividing by it would undo the mining
        loss_type="dapo",
    )
