"""The configuration: frozen, strict, one class a step; a profile is a YAML file of them.

Every field has a description; docs/reference/configuration.md is generated from them. Unknown keys are refused, and so
are values that could only fail later, in a step that may be hours away. The step `configure` checks what depends on the
machine or the checkpoint.
"""

from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from hardcase.config.base import (
    Attention,
    BoardKind,
    Config,
    Count,
    EngineKind,
    Resamples,
    Seed,
    Share,
    SourceUri,
    Threads,
    VllmDtype,
)
from hardcase.config.training import GrpoConfig, LoraConfig, MineConfig, RewardKind, SftConfig, TrainConfig
from hardcase.errors import InputError

GpuMemory = Literal["24gb", "80gb"]
Chosen = TypeVar("Chosen", bound="Config")
IMAGES: Final = 5  # of a sample
__all__ = [
    "Attention",
    "EngineKind",
    "GrpoConfig",
    "LoraConfig",
    "MineConfig",
    "RewardKind",
    "SftConfig",
    "TrainConfig",
]


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
    orders: int = Field(
        4,
        ge=1,
        le=4,
        description="Orders of the candidates in which each question is asked; 1 leaves out confidence and abstention.",
    )
    precision: float = Field(
        0.95, gt=0, lt=1, description="Promised share of right flags, by which thresholds of abstention are found."
    )
    assurance: float = Field(0.9, gt=0, lt=1, description="Probability that a threshold holds that promise.")
    vllm_dtype: VllmDtype = "auto"
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
    min_overall: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Least lower end of the interval of overall. Unset, it must exceed the upper end of chance's. "
        "0 promotes a model that is no better than chance.",
    )
    min_valid: Share | None = Field(
        None, description="Least share of valid answers. Unset, 1 minus the share of credit that guessing earns."
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="Significance of the intervals, overall and by aspect.")
    resamples: Resamples = Field(2000, description="Bootstrap resamples over groups.")
    retention_days: int | None = Field(
        None, ge=1, le=36_500, description="Days of Object Lock on ledger and dossier, in a bucket that supports it."
    )


class ClusterConfig(Config):
    """Resources of a cluster and how work is divided. A run on one machine ignores it and uses all GPUs there."""

    gpu_memory: GpuMemory | None = Field(None, description="Memory of each GPU. Unset, steps get no GPU.")
    ingest_shards: int = Field(1, ge=1, le=256, description="Pods that share the reading of a source.")
    rollout_shards: int = Field(1, ge=1, le=256, description="GPUs that share the rollouts of mining.")
    answer_shards: int = Field(1, ge=1, le=256, description="GPUs that share the answers to evaluate.")


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
    source: SourceUri = Field(description="URI or path of the samples, or several URIs with spaces between them.")
    metrics: BoardKind = Field(
        "tensorboard", description="Where training shows metrics while it runs. It changes no result."
    )
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
    def _validation_has_rows(self) -> Self:
        if (self.sft.validate_steps or self.grpo.validate_steps) and not self.sft.hold_out:
            raise ValueError("validate_steps needs held-out rows; set sft.hold_out")
        return self

    @model_validator(mode="after")
    def _completions_fit(self) -> Self:
        if (tiny := self.model.tiny) and (misfit := self.explain_misfit(tiny.image_tokens, tiny.CONTEXT)):
            raise ValueError(misfit)
        return self


class EvaluationProfile(GeneratingConfig):
    """How a registered model is evaluated: of its recorded configuration what answers, scores and compares."""

    seed: Seed = 0
    source: SourceUri
    ingest: IngestConfig = IngestConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    drift: DriftConfig = DriftConfig()
    cluster: ClusterConfig = ClusterConfig()


PROFILES = Path(__file__).parents[1] / "profiles"


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
