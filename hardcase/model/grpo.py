"""Train a model with HCM-GRPO on mined samples, with TRL."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig as TrlGrpoConfig
from trl.models.utils import unwrap_model_for_generation

from hardcase.config import GrpoConfig
from hardcase.config.base import Destination
from hardcase.config.training import split_reward
from hardcase.data.cases import MinedCase, judge, read_cases, write_cases
from hardcase.lifetime import STOP
from hardcase.model.engine import Engine, LocalEngine, generate_answers
from hardcase.model.live import describe_rows
from hardcase.model.mining import Weights, compute_weights
from hardcase.model.rewards import load_reward_functions
from hardcase.model.rows import build_lazy_dataset, build_prompt_row
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.model.training import build_common_arguments, build_lora_config, freeze, train
from hardcase.model.trl_settings import build_arguments
from hardcase.model.validation import Validation, measure_exact_match
from hardcase.model.vllm import build_options
from hardcase.task.reward import dpa_reward
from hardcase.task.sample import Sample


def train_grpo(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    mined: Sequence[MinedCase],
    config: GrpoConfig,
    seed: int,
    checkpoints: Path,
    reward_files: Path | None = None,
    held_out: Sequence[Sample] = (),
    to: Destination | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place on `samples`, with a mined case for each of them, and return the training log.

    Where no weight depends on mining, cases may be missing. `checkpoints` is for checkpoints and for the cases of
    later rounds of mining, `reward_files` holds the files of `config.rewards`,
    `held_out` the samples that validate it. `to` is where metrics and completions are shown.
    """
    cases = list(mined)

    @lru_cache(maxsize=2 * config.batch_size)  # a row is read once for each of its completions
    def read_row(index: int) -> dict[str, Any]:
        return build_prompt_row(samples[index])

    def weigh_round(number: int) -> Weights:
        if number > 0 and config.depends_on_mining:
            cases[:] = _mine_again(trainer, samples, config, seed + number, checkpoints / f"mined-{number}.parquet")
        return compute_weights(cases, samples, config)

    def build_row(index: int) -> dict[str, Any]:
        hard = {"hard": float(cases[index].hard)} if len(cases) == len(samples) else {}
        return {**read_row(index), **hard}

    freeze(model, config)
    trainer = HCMGRPOTrainer(
        model,
        reward_funcs=[
            _reward_task(config),
            *load_reward_functions(_order_rewards(config), reward_files or checkpoints),
        ],
        args=build_grpo_arguments(config, seed, checkpoints),
        train_dataset=build_lazy_dataset(len(samples), build_row),
        processing_class=processor,
        peft_config=build_lora_config(config, model, "grpo"),
        weights=weigh_round,
        rounds=config.rounds,
        most_draws=config.most_draws,
        oversample=config.oversample,
        vllm_options=build_options(config, model.config, processor),
    )
    validation = None
    if config.validate_steps:
        answer = partial(measure_exact_match, trainer, held_out, config.batch_size, config.max_new_tokens)
        validation = Validation(trainer, config, answer)
    return train(trainer, "grpo", checkpoints / STOP, validation, to)


def build_grpo_arguments(config: GrpoConfig, seed: int, folder: Path) -> TrlGrpoConfig:
    """Build TRL's arguments of GRPO."""
    own = {
        **build_common_arguments(config, seed, folder),
        # A round of mining begins when its first prompt is drawn, and workers draw ahead.
        "dataloader_num_workers": 0 if config.rounds > 1 else config.workers,
        "num_generations": config.generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "beta": config.beta,
        "num_iterations": config.updates,
        "reward_weights": [config.reward_weight, *(config.rewards[name] for name in _order_rewards(config))],
        "use_vllm": config.engine == "vllm",
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": config.vllm_memory,
        "vllm_enable_sleep_mode": config.vllm_sleep,
        "scale_rewards": "none",  # the spread of a group is its difficulty: dividing by it would undo the mining
        "loss_type": "dapo",
        "log_multimodal": False,  # it would collect the images of all processes in each step
    }
    return build_arguments(TrlGrpoConfig, own, config.trl, "grpo")


def _reward_task(config: GrpoConfig) -> Callable[..., list[float]]:
    """Return the reward of the task, which also tells TRL's log of completions which rows they answer."""

    def reward(completions: Sequence[Any], log_extra: Callable[..., None], **columns: Any) -> list[float]:
        for name, values in describe_rows(columns).items():
            log_extra(name, values)
        return dpa_reward(completions, kind=config.reward, worth=config.partial_credit, **columns)

    reward.__name__ = "dpa_reward"  # under which TRL logs it
    return reward


def _order_rewards(config: GrpoConfig) -> list[str]:
    """Return the names of the user's reward functions, in an order that does not depend on where their files are."""
    return sorted(config.rewards, key=split_reward)


@contextmanager
def _open_engine(trainer: HCMGRPOTrainer) -> Iterator[Engine]:
    """Yield the engine of the rollouts with the weights in training; all processes enter."""
    rollouts = trainer.vllm_generation if trainer.use_vllm else None
    if rollouts and rollouts.mode == "colocate" and rollouts.tensor_parallel_size == 1:
        with rollouts.open_engine() as engine:
            yield engine
    else:  # a vLLM that several processes share answers no prompts of one
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            yield LocalEngine(model, trainer.processing_class)


def _mine_again(
    trainer: HCMGRPOTrainer, samples: Sequence[Sample], config: GrpoConfig, seed: int, file: Path
) -> list[MinedCase]:
    """Mine the samples with the model in training, each process a share of them.

    The cases are written to `file`, which a resumed training reads because its model has changed since.
    """
    if not file.exists():
        accelerator = trainer.accelerator
        own = samples[accelerator.process_index :: accelerator.num_processes]
        rows = config.batch_size * (config.accumulation if trainer.use_vllm else 1)  # vLLM has room for a step's
        with _open_engine(trainer) as engine:
            rollouts = generate_answers(
                engine,
                own,
                copies=config.generations,
                batch_size=max(1, rows // config.generations),
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=seed,
                what="mining again",
            )
        own_cases = [
            judge(sample.id, sample.truth, texts, config.hard_below)
            for sample, texts in zip(own, rollouts, strict=True)
        ]
        by_id = {case.id: case for case in gather_object(own_cases)}
        if accelerator.is_main_process:
            part = file.with_suffix(".part")
            write_cases([by_id[sample.id] for sample in samples], part)
            part.rename(file)
        accelerator.wait_for_everyone()
    return read_cases(file)
