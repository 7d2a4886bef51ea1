"""Build a tiny InternVL, or load a checkpoint from a folder or the hub; all of stock transformers classes.

A saved folder opens with stock transformers and vLLM too. The processor keeps the settings of InternVL's video part,
but does not build that part, which needs torchvision and which the task does not use.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Config,
)
from transformers.video_processing_utils import BaseVideoProcessor

from hardcase.config import Attention, ModelConfig, TinyModelConfig
from hardcase.data.weights import refuse_pickles
from hardcase.errors import HardcaseError, InputError
from hardcase.model.tokenizer import CHAT_TEMPLATE, build_tokenizer


class InternVLProcessor(transformers.InternVLProcessor):  # type: ignore[misc]
    """Process images as the stock class of that name does, under whose name it is saved.

    `video_processor` is the dict of the settings of the video part.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        image_seq_length=256,
        chat_template=None,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs)
        self.video_processor = {**(video_processor or {}), "video_processor_type": "InternVLVideoProcessor"}

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that are built."""
        return ["image_processor", "tokenizer"]


def set_up_torch(seed: int, threads: int = 2) -> None:
    """Fix the number of threads, use deterministic kernels and seed torch, so that every run gives the same bytes."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling new memory costs more than the training of a tiny model, and no code here reads it before writing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)


def load_initial_model(
    config: ModelConfig, texts: Iterable[str], seed: int, dtype: str = "float32"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return the model and processor that training starts from: a checkpoint, or a tiny model.

    `texts` have the vocabulary of a tiny model's tokenizer, `seed` is of its weights, `dtype` of a checkpoint's.
    """
    if config.checkpoint is not None:
        model, processor = load_model(config.checkpoint, config.revision, dtype)
        if config.max_tiles is not None:
            processor.image_processor.max_patches = config.max_tiles
        return model, processor
    if config.tiny is None:
        raise InputError("model: neither a checkpoint nor a tiny model; set `model.checkpoint` or `model.tiny`")
    return build_tiny(config.tiny, texts, seed)


def build_tiny(
    sizes: TinyModelConfig, texts: Iterable[str], seed: int
) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    """Build an InternVL of a few hundred thousand random parameters and its processor.

    From scratch it learns with a layer scale of 1, an initializer range of .08 and position embeddings of N(0, .2)
    (measured, docs/decisions/0004-tiny-recipe.md); the stock values suit pre-trained towers.
    """
    tokenizer = build_tokenizer(texts)
    side = {"height": sizes.image_size, "width": sizes.image_size}
    processor = InternVLProcessor(  # type: ignore[no-untyped-call]
        image_processor=GotOcr2ImageProcessorPil(
            size=side, min_patches=1, max_patches=1, image_mean=[0.5] * 3, image_std=[0.25] * 3
        ),
        tokenizer=tokenizer,
        image_seq_length=sizes.image_tokens,
        chat_template=CHAT_TEMPLATE,
    )
    vision = InternVLVisionConfig(
        hidden_size=sizes.vision_hidden,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        intermediate_size=2 * sizes.vision_hidden,
        image_size=[sizes.image_size] * 2,
        patch_size=[sizes.patch_size] * 2,
        layer_scale_init_value=1.0,
        attention_bias=True,
        initializer_range=0.08,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_hidden,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        intermediate_size=2 * sizes.text_hidden,
        max_position_embeddings=sizes.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.08,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=sizes.image_tokens,
            downsample_ratio=0.5,
            tie_word_embeddings=True,
        )
    )
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def build_outline(config: ModelConfig) -> PreTrainedModel | None:
    """Build the initial model without its weights, or return None for a checkpoint that is not on this machine."""
    with torch.device("meta"):
        if config.tiny is not None:
            return build_tiny(config.tiny, [], 0)[0]
        try:
            described = AutoConfig.from_pretrained(config.checkpoint, revision=config.revision, local_files_only=True)
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(described)
        except (OSError, ValueError):
            return None
        return model


def checkpoint_folder(config: ModelConfig) -> Path | None:
    """Return the folder of the initial checkpoint, fetched from the hub if needed, or None for a tiny model."""
    if config.checkpoint is None:
        return None
    if (folder := Path(config.checkpoint)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.checkpoint, revision=config.revision))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {config.checkpoint}: {str(error).splitlines()[0]}; name a readable folder or hub id"
        ) from error


def load_processor(checkpoint: str | Path, revision: str | None = None) -> ProcessorMixin:
    """Load the processor of a model in a folder or on the hub."""
    config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    options = {"revision": revision, "trust_remote_code": False}
    if not isinstance(config, InternVLConfig):
        return AutoProcessor.from_pretrained(checkpoint, **options)
    processor: ProcessorMixin = InternVLProcessor.from_pretrained(checkpoint, **options)
    with suppress(OSError):  # earlier versions of hardcase saved nothing about video
        video, _ = BaseVideoProcessor.get_video_processor_dict(checkpoint, revision=revision)
        processor.video_processor |= {k: v for k, v in video.items() if not k.startswith("image_processor")}
    return processor


def load_model(
    checkpoint: str | Path, revision: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model and its processor from a folder or the hub, or raise `InputError`.

    Only safetensors are loaded, without remote code and with no pickle beside them. By default weights are bfloat16 on
    a GPU and float32 elsewhere, which suits inference.
    """
    dtype = dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    try:
        refuse_pickles(Path(checkpoint))
        processor = load_processor(checkpoint, revision)
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except HardcaseError as error:
        raise InputError(f"model {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model {checkpoint}: {reason}; name a folder or hub id with config, processor and safetensors"
        ) from error
    return model, processor


def set_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Set the attention of the language model, or raise `InputError` where this machine lacks what it needs."""
    try:
        model.set_attn_implementation({"text_config": attention})
    except (ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"attention {attention!r}: {reason}; set `attention: sdpa`") from error


def gather_weights(model: torch.nn.Module, *, change: bool = False) -> AbstractContextManager[None]:
    """Gather all weights in every process, also those that ZeRO-3 partitions; all processes must enter.

    With `change` the main process's changes to them are distributed.
    """
    partitioned = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed  # its import takes seconds, and a single process never needs it

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=0 if change else None
    )
    return gathered


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write model (safetensors), config and processor into `folder`, from the main process only."""
    with gather_weights(model):
        if PartialState().is_main_process:
            # A reader of the store holds each file in memory.
            model.save_pretrained(folder, safe_serialization=True, max_shard_size="1GB")
            # How the tokenizer was loaded, from the hub or offline, and last called is no property of the model.
            for option in ("is_local", "local_files_only"):
                processor.tokenizer.init_kwargs.pop(option, None)
            if backend := getattr(processor.tokenizer, "backend_tokenizer", None):
                backend.no_padding()
            processor.save_pretrained(folder)


def hold_equal_weights(first: Path, second: Path) -> bool:
    """Return whether two folders hold equal weights; those of the first are converted to the second's type."""
    with ExitStack() as stack:
        files = [
            [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
            for folder in (first, second)
        ]
        before, after = ({name: file for file in opened for name in file.keys()} for opened in files)  # noqa: SIM118
        return before.keys() == after.keys() and all(
            torch.equal(before[name].get_tensor(name).to((weight := after[name].get_tensor(name)).dtype), weight)
            for name in after
        )
