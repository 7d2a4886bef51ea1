"""The sections that train: supervised fine-tuning, mining, GRPO."""

import math
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hardcase.config.base import SECRET, Attention, Config, Count, EngineKind, Share, Threads, VllmDtype

RewardKind = Literal["exact", "subset", "penalised", "jaccard"]


def split_reward(name: str) -> tuple[str, str]:
    """Return the name of the file and of the function of `path/file.py:function` or `module:function`."""
    if not (parts := re.fullmatch(r"(?:.*/)?([\w.-]+):([A-Za-z_]\w*)", name)):
        raise ValueError(f"{name!r} names no function; write path/file.py:function or module:function")
    return parts[1] if parts[1].endswith(".py") else f"{parts[1]}.py", parts[2]


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) instead of full training. They are merged into the model when it ends."""

    rank: Count = Field(64, description="Rank of an adapter.")
    alpha: Count = Field(128, description="Scale of an adapter's output: alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on an adapter's input.")
    targets: str = Field(
        r".*language_model.*_proj", min_length=1, description="Regular expression of layers that get an adapter."
    )

    @field_validator("targets")
    @classmethod
    def _is_pattern(cls, targets: str) -> str:
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"{targets!r} is no regular expression: {error}; correct it") from error
        return targets


class TrainConfig(Config):
    """Settings of every phase of training. AdamW with betas .9 and .98, gradients clipped at 1."""

    steps: Count = Field(description="Optimizer steps.")
    batch_size: Count = Field(description="Rows a device and step: samples in SFT, completions in GRPO.")
    accumulation: Count = Field(1, description="Forward and backward passes an optimizer step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate. It falls linearly to 0.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    save_steps: Count = Field(100, description="Steps between checkpoints.")
    bf16: bool = Field(False, description="Compute in bfloat16.")
    gradient_checkpointing: bool = Field(False, description="Save memory: recompute activations in the backward pass.")
    workers: int = Field(
        0, ge=0, le=1024, description="Processes that decode images. GRPO with several `rounds` has none."
    )
    threads: Threads = Field(2, description="Threads of torch on CPU. Sums depend on it, so it is fixed.")
    processes: Count = Field(1, description="Processes that train together on a machine, one for each GPU.")
    nodes: Count = Field(1, description="Machines of `processes` processes each, started by Kubeflow Trainer.")
    zero: Literal[2, 3] | None = Field(
        None, description="Stage of DeepSpeed ZeRO (arXiv 1910.02054), from profiles/zero2.json or zero3.json."
    )
    lora: LoraConfig | None = Field(None, description="Train low-rank adapters instead of all weights.")
    freeze_vision_tower: bool = Field(False, description="Leave the weights of the vision tower as they are.")
    attention: Attention = Field(
        "sdpa",
        description="Attention of the language model. `flex_attention` needs a GPU and skips the pairs of completions "
        "that a mask hides. With `flash_attention_2`, GRPO computes a prompt for each of its completions.",
    )
    trl: dict[str, Any] = Field(
        {}, description="More settings of TRL by its own names. Those that hardcase sets itself are refused."
    )

    @field_validator("trl")
    @classmethod
    def _has_values(cls, trl: dict[str, Any]) -> dict[str, Any]:
        if secret := next(filter(SECRET.fullmatch, trl), None):
            raise ValueError(f"{secret} would be in every record; leave it out, and set HF_TOKEN for the hub")
        if empty := [name for name, value in trl.items() if value is None]:
            raise ValueError(f"{empty[0]} has no value; leave it out")
        return trl

    @property
    def dtype(self) -> str:
        """Return the type of weights during training: bfloat16 where another copy accumulates the updates."""
        return "bfloat16" if self.bf16 and (self.zero or self.lora) else "float32"


class ValidatedConfig(TrainConfig):
    """Settings of a training that is validated on the rows that `sft.hold_out` sets aside."""

    validate_steps: int | None = Field(None, ge=1, description="Steps between validations. Unset, there are none.")
    keep: Literal["last", "best"] = Field(
        "last", description="Weights to return: of the last step, or of the first with the best validation."
    )
    patience: int | None = Field(
        None, ge=1, description="Validations in a row without an improvement after which training ends. Unset, never."
    )

    @model_validator(mode="after")
    def _is_validated(self) -> Self:
        others = (self.keep == "best", self.patience, getattr(self, "validate_tokens", None))
        if self.validate_steps is None and any(others):
            raise ValueError("keep, patience and validate_tokens need validate_steps; set it")
        return self


class SftConfig(ValidatedConfig):
    """Supervised fine-tuning on the annotated samples. Validation measures the loss, and exact match if asked for."""

    hold_out: float = Field(
        0.0, ge=0, lt=1, description="Share of the training groups that no step trains on, for validation."
    )
    validate_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of an answer, where validation also answers greedily and exact match decides what is "
        "best. Unset, the loss decides.",
    )
    warm_up: TrainConfig | None = Field(None, description="First phase of a tiny model: captions of one image.")
    reading: TrainConfig | None = Field(
        None, description="Second phase of a tiny model: descriptions of five images, no verdict."
    )

    @model_validator(mode="after")
    def _phases_in_one_process(self) -> "SftConfig":
        phases = [phase for phase in (self, self.warm_up, self.reading) if phase]
        if len(phases) > 1 and any(phase.nodes * phase.processes > 1 or phase.zero or phase.lora for phase in phases):
            raise ValueError(
                "`warm_up` and `reading` are for a tiny model: no `nodes`, `processes`, `zero` or `lora` with them"
            )
        return self


class SampleConfig(Config):
    """How completions are sampled."""

    temperature: float = Field(1.0, ge=0.01, description="Sampling temperature.")
    max_new_tokens: Count = Field(64, description="Most tokens of a completion.")
    vllm_dtype: VllmDtype = "auto"


class MineConfig(SampleConfig):
    """Hard-case mining (arXiv 2511.10055): k rollouts of each training sample by the SFT model."""

    engine: EngineKind = Field("transformers", description="Engine that generates the rollouts.")
    k: int = Field(8, ge=2, description="Rollouts of each sample.")
    batch_size: Count = Field(16, description="Prompts at a time.")
    sample: int | None = Field(
        None,
        ge=1,
        description="Training samples to mine, drawn at random, where no weight of `grpo` depends on mining: "
        "`grpo.hard_share` is 0 and `grpo.suspects` true. Unset, all.",
    )
    threads: Threads = Field(2, description="Threads of torch on CPU. Sums depend on it, so it is fixed.")
    hard_below: float = Field(0.5, gt=0, le=1, description="Share of right rollouts below which a sample is hard.")


class GrpoConfig(ValidatedConfig, SampleConfig):
    """HCM-GRPO (arXiv 2511.10055) on TRL's GRPO (arXiv 2402.03300). Validation measures exact match, greedily."""

    engine: EngineKind = Field("transformers", description="Engine of the rollouts. vLLM shares the GPU with training.")
    vllm_memory: float = Field(0.3, gt=0, lt=1, description="Share of the GPU's memory that vLLM takes.")
    vllm_sleep: bool = Field(
        False, description="Free vLLM's memory during updates. Its weights are then copied for each rollout."
    )
    generations: int = Field(8, ge=2, description="Completions of each prompt: the group size G.")
    updates: Count = Field(1, description="Optimizer passes over the same rollouts.")
    reward: RewardKind = Field(
        "exact", description="Reward of an answer: docs/decisions/0001. `exact` measured best: docs/decisions/0007."
    )
    partial_credit: Share = Field(0.25, description="Weight of partial credit in the reward of a wrong answer.")
    reward_weight: float = Field(1.0, ge=0, description="Weight of `reward` beside `rewards`. 0 leaves it out.")
    rewards: dict[str, float] = Field(
        {}, description="Weights of more reward functions, by `path/file.py:function` or `module:function`."
    )
    hard_share: Share = Field(0.0, description="Share of draws from hard cases. The rest is uniform over all samples.")
    suspects: bool = Field(True, description="Draw samples that no rollout solved among the rest.")
    most_draws: int | None = Field(
        None, ge=1, description="Most draws of one sample while enough others remain. Unset, no limit."
    )
    rounds: Count = Field(1, description="Rounds of mining: first the step `mine`, later ones during training.")
    hard_below: float = Field(0.5, gt=0, le=1, description="As in `mine`, for the later rounds.")
    beta: float = Field(0.0, ge=0, description="Weight of the KL term. 0 needs no reference model.")
    oversample: Count = Field(
        1,
        description="Prompts drawn for each prompt of a step. The step learns from those whose completions differ in "
        "reward, as many as it has prompts. Above 1, `beta` must be 0.",
    )

    @property
    def depends_on_mining(self) -> bool:
        """Return whether the weight of any draw depends on mined cases."""
        return bool(self.hard_share) or not self.suspects

    @model_validator(mode="after")
    def _rewards_have_names(self) -> Self:
        functions = [split_reward(name)[1] for name in self.rewards]
        if twice := [name for name in functions if functions.count(name) > 1]:
            raise ValueError(f"two reward functions are called {twice[0]}, as which they are logged; rename one")
        if not self.reward_weight and not any(self.rewards.values()):
            raise ValueError("no reward has a weight; set reward_weight, or name functions in rewards")
        return self

    @model_validator(mode="after")
    def _batches_are_whole(self) -> Self:
        # TRL (1.16.0, trainer/grpo_config.py:1131) counts the completions of all processes. We compute each prompt once
        # in the process that has it, so a group stays in one process.
        if (rows := self.batch_size * self.accumulation) % self.generations:
            raise ValueError(
                f"batch_size × accumulation = {self.batch_size} × {self.accumulation} = {rows} is no multiple of "
                f"generations = {self.generations}, so groups would not be whole; change one"
            )
        if self.rounds > (batches := math.ceil(self.steps / self.updates)):
            raise ValueError(f"rounds {self.rounds} are more than steps / updates = {batches} rollouts; lower it")
        if self.oversample > 1 and self.beta:
            raise ValueError(
                f"oversample {self.oversample} leaves prompts out, which a KL term of beta {self.beta} counts; set "
                "`beta: 0` or `oversample: 1`"
            )
        return self
