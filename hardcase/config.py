"""The configuration: frozen, strict, one class a step; a profile is a YAML file of them.

Every field has a description; docs/reference/configuration.md is generated from them. Unknown keys are refused, and so
are values that could only fail later, in a step that may be hours away. The step `configure` checks what depends on the
machine or the checkpoint.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hardcase.errors import InputError

RewardKind = Literal["exact", "subset", "penalised", "jaccard"]
EngineKind = Literal["transformers", "vllm"]
GpuMemory = Literal["24gb", "80gb"]
Chosen = TypeVar("Chosen", bound="Config")
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # each process adds its number, and NumPy takes less than 2**32
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]
IMAGES: Final = 5  # of a sample


class Config(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IngestConfig(Config):
    """Turn a source into a snapshot. The rules of a source are in docs/reference/formats.md."""

    max_bad_share: Share = Field(0.05, description="Largest share of quarantined rows; above it the run ends.")
    eval_share: Share = Field(0.25, description="Share of groups drawn for evaluation where no row names its split.")
    group_distance: int = Field(
        4,
        ge=0,
        le=64,
        description="Most differing bits, of 64, in the perceptual hashes of originals that look the same.",
    )
    shard_bytes: int = Field(
        64 * 2**20, gt=0, le=2**30, description="Size in bytes of images at which a shard of the snapshot is closed."
    )


class ValidateConfig(Config):
    """Bounds of the expectation suite over the snapshot's table. A snapshot outside them ends the run."""

    min_train_rows: Count = Field(100, description="Least number of training rows.")
    min_eval_rows: Count = Field(50, description="Least number of evaluation rows.")
    min_aspect_share: Share = Field(0.05, description="Least share of rows of each aspect.")
    max_aspect_share: Share = Field(0.6, description="Largest share of rows of each aspect.")
    min_none_share: Share = Field(0.0, description="Least share of rows without a flaw.")
    max_none_share: Share = Field(0.6, description="Largest share of rows without a flaw.")
    min_letter_share: Share = Field(0.1, description="Least share of rows that flag each letter.")
    max_letter_share: Share = Field(0.9, description="Largest share of rows that flag each letter.")
    max_blank_share: Share = Field(0.01, description="Largest share of images with next to no contrast.")

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        for what in ("aspect", "none", "letter"):
            least, most = (getattr(self, f"{end}_{what}_share") for end in ("min", "max"))
            if least > most:
                raise ValueError(f"min_{what}_share {least:g} is above max_{what}_share {most:g}; lower it")
        if not self.min_aspect_share <= 1 / 4 <= self.max_aspect_share:
            raise ValueError(
                "the shares of the four aspects add up to 1; set min_aspect_share to at most 0.25 and max_aspect_share "
                "to at least 0.25"
            )
        return self


class TinyModelConfig(Config):
    """A small InternVL of the stock classes, built from nothing. The sizes are those of docs/decisions/0004."""

    CONTEXT: ClassVar[int] = 2048  # tokens

    image_size: Count = Field(48, description="Side of an image, in pixels; a multiple of twice `patch_size`.")
    patch_size: Count = Field(8, description="Side of a patch, in pixels.")
    vision_hidden: Count = Field(64, description="Width of the vision encoder, which has a head for each 32.")
    vision_layers: Count = Field(2, description="Layers of the vision encoder.")
    text_hidden: Count = Field(64, description="Width of the language model; a multiple of twice `heads`.")
    text_layers: Count = Field(3, description="Layers of the language model.")
    heads: Count = Field(4, description="Attention heads of the language model.")

    @property
    def vision_heads(self) -> int:
        """Return the number of attention heads of the vision encoder."""
        return max(1, self.vision_hidden // 32)

    @property
    def image_tokens(self) -> int:
        """Return the number of tokens of an image: patches are merged two by two."""
        return (self.image_size // self.patch_size // 2) ** 2

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        parts = {"image_size": 2 * self.patch_size, "vision_hidden": self.vision_heads, "text_hidden": 2 * self.heads}
        why = {
            "image_size": "twice patch_size",
            "vision_hidden": "its number of heads, one for each 32",
            "text_hidden": "twice heads",
        }
        for name, part in parts.items():
            if (size := getattr(self, name)) % part:
                raise ValueError(f"{name} {size} is no multiple of {part}, {why[name]}; change one")
        return self


class ModelConfig(Config):
    """Where SFT starts: a checkpoint, or a tiny model built from nothing. Exactly one of the two is named."""

    checkpoint: str | None = Field(None, description="Folder or Hugging Face id of an InternVL checkpoint.")
    revision: str | None = Field(None, description="Commit of the Hugging Face repository.")
    max_tiles: int | None = Field(
        None, ge=1, description="Most tiles an image is cut into. Unset, the checkpoint's own image processor decides."
    )
    tiny: TinyModelConfig | None = Field(None, description="Sizes of a model built from nothing.")

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if (self.checkpoint is None) == (self.tiny is None):
            raise ValueError("name exactly one of `checkpoint` and `tiny`")
        return self


class EvaluateConfig(Config):
    """Answer the untouched split greedily and score the answers."""

    engine: EngineKind = Field("transformers", description="Engine that generates the answers.")
    batch_size: Count = Field(64, description="Samples answered at a time.")
    max_new_tokens: Count = Field(64, description="Most tokens of an answer; a longer one is cut and scores 0.")
    threads: Threads = Field(2, description="Threads of torch on CPU. Sums depend on it, so it is fixed.")
    resamples: Resamples = Field(2000, description="Bootstrap resamples over groups, for the intervals.")


class DriftConfig(Config):
    """Compare per-sample scores and answers with the reference. Calibrated in docs/decisions/0002."""

    alpha: float = Field(0.01, gt=0, lt=1, description="Probability of a false alarm, over all tests together.")
    min_drop: Share = Field(0.03, description="Least fall of a score or rise of invalid answers that counts as drift.")
    min_shift: Share = Field(0.05, description="Least change of a category's share that counts as drift.")


class RegisterConfig(Config):
    """The gate before the alias `champion`. Its rules are in docs/decisions/0003."""

    NAME: ClassVar[str] = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

    name: str = Field("image-screener", pattern=f"^{NAME}$", description="Name of the registered model.")
    min_rows: Count = Field(100, description="Least evaluation rows, and least rows shared with the champion.")
    alpha: float = Field(0.05, gt=0, lt=1, description="Significance of the intervals, overall and by aspect.")
    resamples: Resamples = Field(2000, description="Bootstrap resamples over groups.")
    retention_days: int | None = Field(
        None, ge=1, le=36_500, description="Days of Object Lock on ledger and dossier, in a bucket that supports it."
    )


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
    workers: int = Field(0, ge=0, le=1024, description="Processes that decode images.")
    threads: Threads = Field(2, description="Threads of torch on CPU. Sums depend on it, so it is fixed.")
    processes: Count = Field(1, description="Processes that train together on a machine, one for each GPU.")
    nodes: Count = Field(1, description="Machines of `processes` processes each, started by Kubeflow Trainer.")
    zero: Literal[2, 3] | None = Field(
        None, description="Stage of DeepSpeed ZeRO (arXiv 1910.02054), from profiles/zero2.json or zero3.json."
    )
    lora: LoraConfig | None = Field(None, description="Train low-rank adapters instead of all weights.")

    @property
    def dtype(self) -> str:
        """Return the type of weights during training: bfloat16 where another copy accumulates the updates."""
        return "bfloat16" if self.bf16 and (self.zero or self.lora) else "float32"


class SftConfig(TrainConfig):
    """Supervised fine-tuning on the annotated samples."""

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


class MineConfig(SampleConfig):
    """Hard-case mining (arXiv 2511.10055): k rollouts of each training sample by the SFT model."""

    engine: EngineKind = Field("transformers", description="Engine that generates the rollouts.")
    k: int = Field(8, ge=2, description="Rollouts of each sample.")
    batch_size: Count = Field(16, description="Prompts at a time.")
    threads: Threads = Field(2, description="Threads of torch on CPU. Sums depend on it, so it is fixed.")
    hard_below: float = Field(0.5, gt=0, le=1, description="Share of right rollouts below which a sample is hard.")


class GrpoConfig(TrainConfig, SampleConfig):
    """HCM-GRPO (arXiv 2511.10055) on TRL's GRPO (arXiv 2402.03300)."""

    engine: EngineKind = Field("transformers", description="Engine of the rollouts. vLLM shares the GPU with training.")
    vllm_memory: float = Field(0.3, gt=0, lt=1, description="Share of the GPU's memory that vLLM takes.")
    generations: int = Field(8, ge=2, description="Completions of each prompt: the group size G.")
    updates: Count = Field(1, description="Optimizer passes over the same rollouts.")
    reward: RewardKind = Field(
        "exact", description="Reward of an answer: docs/decisions/0001. `exact` measured best: docs/decisions/0007."
    )
    partial_credit: Share = Field(0.25, description="Weight of partial credit in the reward of a wrong answer.")
    hard_share: Share = Field(0.0, description="Share of draws from hard cases. The rest is uniform over all samples.")
    suspects: bool = Field(True, description="Draw samples that no rollout solved among the rest.")
    most_draws: int | None = Field(
        None, ge=1, description="Most draws of one sample while enough others remain. Unset, no limit."
    )
    rounds: Count = Field(1, description="Rounds of mining: first the step `mine`, later ones during training.")
    hard_below: float = Field(0.5, gt=0, le=1, description="As in `mine`, for the later rounds.")
    beta: float = Field(0.0, ge=0, description="Weight of the KL term. 0 needs no reference model.")

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
        return self


class ClusterConfig(Config):
    """Resources of a cluster and how work is divided. A run on one machine ignores it."""

    gpu_memory: GpuMemory | None = Field(None, description="Memory of each GPU. Unset, steps get no GPU.")
    ingest_shards: int = Field(1, ge=1, le=256, description="Pods that share the reading of a source.")
    rollout_shards: int = Field(1, ge=1, le=256, description="Pods that share the rollouts of mining.")
    answer_shards: int = Field(1, ge=1, le=256, description="Pods that share the answers to evaluate.")


class GeneratingConfig(Config):
    """A configuration of several steps, of which some generate text."""

    @property
    def _generating(self) -> dict[str, Any]:
        steps = ("mine", "grpo", "evaluate")
        return {step: getattr(self, step) for step in steps if step in type(self).model_fields}

    @property
    def vllm_steps(self) -> list[str]:
        """Return the sections whose engine is vLLM."""
        return [step for step, config in self._generating.items() if config.engine == "vllm"]

    def explain_misfit(self, image_tokens: int, context: int) -> str:
        """Return which completions a model's context has no room for beside five images; empty if it has."""
        room = max(0, context - IMAGES * image_tokens)
        for step, config in self._generating.items():
            if (length := config.max_new_tokens) > room:
                return (
                    f"{step}.max_new_tokens is {length}, and the model's context of {context} tokens has room for "
                    f"{room} beside five images of {image_tokens}; lower it"
                )
        return ""


class Profile(GeneratingConfig):
    """One way to retrain: the configuration of every step."""

    seed: Seed = Field(0, description="Seed of everything that is random.")
    source: str = Field(description="URI or path of the samples.")
    ingest: IngestConfig = Field(IngestConfig(), description="Step `ingest`.")
    validation: ValidateConfig = Field(ValidateConfig(), alias="validate", description="Step `validate`.")
    model: ModelConfig = Field(description="Model that SFT starts from.")
    sft: SftConfig = Field(description="Step `sft`.")
    mine: MineConfig = Field(MineConfig(), description="Steps `rollout` and `mine`.")
    grpo: GrpoConfig = Field(description="Step `grpo`.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Steps `answer` and `evaluate`.")
    drift: DriftConfig = Field(DriftConfig(), description="Step `drift`.")
    registration: RegisterConfig = Field(RegisterConfig(), alias="register", description="Step `register`.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Resources and division of work on a cluster.")

    @model_validator(mode="after")
    def _completions_fit(self) -> Self:
        if (tiny := self.model.tiny) and (misfit := self.explain_misfit(tiny.image_tokens, tiny.CONTEXT)):
            raise ValueError(misfit)
        return self


class EvaluationProfile(GeneratingConfig):
    """How a registered model is evaluated: of its recorded configuration what answers, scores and compares."""

    seed: Seed = 0
    source: str
    ingest: IngestConfig = IngestConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    drift: DriftConfig = DriftConfig()
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
        raise InputError(f"profile {path}: not YAML: {str(error).splitlines()[0]}; fix the file") from error
    return _validate(Profile, tree, overrides or {}, f"profile {path}")


def load_evaluation_profile(recorded: dict[str, Any], overrides: dict[str, Any]) -> EvaluationProfile:
    """Return how a model is evaluated: by its recorded configuration, empty for none, and by overrides."""
    tree = {name: recorded[name] for name in EvaluationProfile.model_fields if name in recorded}
    return _validate(EvaluationProfile, tree, overrides, "the evaluation")


def _validate(kind: type[Chosen], tree: dict[str, Any], overrides: dict[str, Any], what: str) -> Chosen:
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {dotted}: {parent!r} is a value, not a section; name a key of {what}")
        if value in (None, "null"):  # back to the default
            node.pop(leaf, None)
        else:
            node[leaf] = value
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        message = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        parts = [what, ".".join(str(part) for part in first["loc"]), message]
        raise InputError(f"{': '.join(filter(None, parts))}; fix this key in the file or by --set") from error
