"""The configuration: frozen, strict, one class a step; a profile is a YAML file of them.

Every field says its default and where it comes from. Unknown keys are refused.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hardcase.errors import InputError

RewardKind = Literal["exact", "subset", "penalised", "jaccard"]
EngineKind = Literal["transformers", "vllm"]
GpuMemory = Literal["24gb", "80gb"]


class Config(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestConfig(Config):
    """From a user's source to a snapshot (`formats.md`)."""

    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    eval_share: float = Field(default=0.25, ge=0, le=1)
    group_distance: int = Field(default=4, ge=0, le=64, description="Hamming distance of 64-bit perceptual hashes")
    shard_bytes: int = Field(default=64 * 2**20, gt=0, le=2**30)


class ValidateConfig(Config):
    """Bounds of the expectation suite over the snapshot's table."""

    min_train_rows: int = Field(default=100, ge=1)
    min_eval_rows: int = Field(default=50, ge=1)
    min_aspect_share: float = Field(default=0.05, ge=0, le=1, description="least share of rows of each aspect")
    max_aspect_share: float = Field(default=0.6, ge=0, le=1)
    min_none_share: float = Field(default=0.0, ge=0, le=1, description="least share of rows without a flaw")
    max_none_share: float = Field(default=0.6, ge=0, le=1)
    min_letter_share: float = Field(default=0.1, ge=0, le=1, description="least share of rows that flag each letter")
    max_letter_share: float = Field(default=0.9, ge=0, le=1)
    max_blank_share: float = Field(default=0.01, ge=0, le=1, description="most pictures of next to no contrast")


class TinyModelConfig(Config):
    """A small InternVL of the stock classes, built from nothing (sizes found in `findings.md`)."""

    image_size: int = 48
    patch_size: int = 8
    vision_hidden: int = 64
    vision_layers: int = 2
    text_hidden: int = 64
    text_layers: int = 3
    heads: int = 4


class ModelConfig(Config):
    """Where SFT starts: a checkpoint (folder or hub id), or a tiny model built from nothing."""

    checkpoint: str | None = None
    revision: str | None = None
    max_tiles: int | None = Field(
        default=None, ge=1, description="of a checkpoint's image processor: most tiles a picture; its own if unset"
    )
    tiny: TinyModelConfig | None = None

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if (self.checkpoint is None) == (self.tiny is None):
            raise ValueError("name exactly one of `checkpoint` and `tiny`")
        return self


class EvaluateConfig(Config):
    """Greedy answers on the untouched split, scores with bootstrap intervals."""

    engine: EngineKind = "transformers"
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    threads: int = Field(default=2, ge=1)
    resamples: int = Field(default=2000, ge=100, description="bootstrap resamples over groups")


class DriftConfig(Config):
    """Drift of per-sample scores and answers against the reference; calibrated in docs/decisions/0002."""

    alpha: float = Field(default=0.01, gt=0, lt=1, description="budget of false alarms, over all tests together")
    min_drop: float = Field(default=0.03, ge=0, le=1, description="least fall of a score, or rise of invalid answers")
    min_shift: float = Field(default=0.05, ge=0, le=1, description="least change of a category's share")


class RegisterConfig(Config):
    """The gate before the alias `champion`; its reading is docs/decisions/0003."""

    NAME: ClassVar[str] = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

    name: str = Field(default="image-screener", pattern=f"^{NAME}$")
    min_rows: int = Field(default=100, ge=1, description="least evaluation rows, and least shared with the champion's")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="of the overall interval, and of the four aspects'")
    resamples: int = Field(default=2000, ge=100, description="bootstrap resamples over groups")
    retention_days: int | None = Field(
        default=None, ge=1, description="Object Lock of ledger and dossier, on a bucket that has it"
    )


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) in place of full training; merged into the model when it ends."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str = Field(
        default=r".*language_model.*_proj", description="pattern of the names of layers that get an adapter"
    )


class TrainConfig(Config):
    """What every phase of training has; AdamW with betas .9 and .98, gradients clipped at 1."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="rows a device and step: samples in SFT, completions in GRPO")
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0, description="falls linearly to 0")
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(default=0.0, ge=0)
    save_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    bf16: bool = False
    gradient_checkpointing: bool = False
    workers: int = Field(default=0, ge=0, description="processes that decode pictures")
    threads: int = Field(default=2, ge=1, description="of torch on CPU; fixed, since sums depend on it")
    processes: int = Field(default=1, ge=1, description="that train together on a machine, one a GPU")
    nodes: int = Field(default=1, ge=1, description="nodes of that many processes each: docs/how-to/train-on-gpus.md")
    zero: Literal[2, 3] | None = Field(default=None, description="DeepSpeed by profiles/zero2.json or zero3.json")
    lora: LoraConfig | None = None

    @property
    def dtype(self) -> str:
        """Of the weights while they are trained: bfloat16 where something else keeps what an update adds to them."""
        return "bfloat16" if self.bf16 and (self.zero or self.lora) else "float32"


class SftConfig(TrainConfig):
    """Supervised fine-tuning on the annotated samples."""

    warm_up: TrainConfig | None = Field(default=None, description="captions of one picture, for a model from nothing")
    reading: TrainConfig | None = Field(default=None, description="then what five pictures show, without a verdict")

    @model_validator(mode="after")
    def _phases_in_one_process(self) -> "SftConfig":
        phases = (self, self.warm_up, self.reading)
        several = any(
            phase and (phase.nodes > 1 or phase.processes > 1 or phase.zero or phase.lora) for phase in phases
        )
        if (self.warm_up or self.reading) and several:
            raise ValueError(
                "`warm_up` and `reading` are for a tiny model: no `nodes`, `processes`, `zero` or `lora` with them"
            )
        return self


class SampleConfig(Config):
    """How completions are drawn."""

    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=64, ge=1)


class MineConfig(SampleConfig):
    """Hard-case mining: k rollouts a training sample by the SFT model."""

    engine: EngineKind = "transformers"
    k: int = Field(default=8, ge=2)
    batch_size: int = Field(default=16, ge=1, description="prompts at a time")
    threads: int = Field(default=2, ge=1)
    hard_below: float = Field(default=0.5, gt=0, le=1, description="hard: solved in less than this share of rollouts")


class GrpoConfig(TrainConfig, SampleConfig):
    """HCM-GRPO (arXiv 2511.10055) on TRL's GRPO (arXiv 2402.03300)."""

    engine: EngineKind = Field(default="transformers", description="of the rollouts; vllm shares the GPU with training")
    vllm_memory: float = Field(default=0.3, gt=0, lt=1, description="share of the GPU that vllm takes")
    generations: int = Field(default=8, ge=2, description="G, completions a prompt")
    updates: int = Field(default=1, ge=1, description="passes over the same rollouts")
    reward: RewardKind = Field(default="exact", description="what measured best: docs/decisions/0007")
    partial_credit: float = Field(default=0.25, ge=0, le=1, description="worth of a wrong answer's share of the reward")
    hard_share: float = Field(
        default=0.0, ge=0, le=1, description="of the draws that go to hard cases; the rest is drawn alike from all"
    )
    suspects: bool = Field(default=True, description="whether what was never solved is drawn among the rest")
    most_draws: int | None = Field(default=None, ge=1, description="of one case, while there are enough others")
    rounds: int = Field(default=1, ge=1, description="of mining; the first is the step `mine`, later ones in between")
    hard_below: float = Field(default=0.5, gt=0, le=1, description="as in `mine`, for later rounds")
    beta: float = Field(default=0.0, ge=0, description="weight of the KL term; 0 needs no reference model")


class ClusterConfig(Config):
    """What pods of a cluster get, and among how many work is divided; on one machine it counts for nothing."""

    gpu_memory: GpuMemory | None = Field(default=None, description="of each GPU; none: no GPUs")
    rollout_shards: int = Field(default=1, ge=1, le=256, description="pods that divide mining's rollouts")
    answer_shards: int = Field(default=1, ge=1, le=256, description="pods that divide the answers to evaluate")


class Profile(Config):
    """One way to retrain: every step's configuration."""

    seed: int = Field(default=0, ge=0)
    source: str
    ingest: IngestConfig = IngestConfig()
    validation: ValidateConfig = Field(default=ValidateConfig(), alias="validate")
    model: ModelConfig
    sft: SftConfig
    mine: MineConfig = MineConfig()
    grpo: GrpoConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    drift: DriftConfig = DriftConfig()
    registration: RegisterConfig = Field(default=RegisterConfig(), alias="register")
    cluster: ClusterConfig = ClusterConfig()


PROFILES = Path(__file__).parent / "profiles"


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read the profile of that name in `profiles/`, or the YAML file at that path.

    Args:
        name: `tiny`, or `path/to/profile.yaml`.
        overrides: dotted keys and their values, such as `{"sft.batch_size": 4}`.

    Raises:
        InputError: no such profile, or a key or value that the configuration refuses.
    """
    path = Path(name) if Path(name).suffix in {".yaml", ".yml"} else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise InputError(f"profile {name!r}: no file {path}; name one of {known}, or a path to a YAML file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"profile {path}: not YAML: {str(error).splitlines()[0]}; mend the file") from error
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {dotted}: {parent!r} is a value, not a section; see {path}")
        node[leaf] = value
    try:
        return Profile.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"profile {path}: {where}: {first['msg']}; mend this key in the file or by --set") from error
