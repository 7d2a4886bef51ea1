"""Run vLLM: as the engine of mining and answering, and for the rollouts of GRPO.

In GRPO, `VllmRollouts` differs from TRL 1.16.0 (generation/vllm_generation.py) in these points:
- prompts: TRL passes the processor's tokens, in which images are expanded already (trainer/grpo_trainer.py:1737), and
  vLLM 0.30.0 expands each image token again (model_executor/models/interns1.py:541; TRL issue 6294). So each
  `<img>…</img>` is passed as the one token that vLLM expands.
- requests: a prompt is one request for its G completions. TRL makes G requests (line 663), each with its images.
- image token: it is never sampled, because it stands for an image that was not given.
- weights: vLLM keeps features of images, which TRL leaves as they were (line 517). They are removed. Adapters are added
  to a copy of the weights; TRL merges them into the weights and subtracts them again (line 448), which moves them.
- prompts and log-probabilities that differ from those of the trainer are refused.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from accelerate.utils import is_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, ProcessorMixin
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer

from hardcase.config import IMAGES, EvaluateConfig, GrpoConfig, MineConfig
from hardcase.data.completions import Completion
from hardcase.data.weights import refuse_pickles
from hardcase.errors import HardcaseError, InputError
from hardcase.model.internvl import load_processor
from hardcase.model.rollout import render_prompts
from hardcase.task.prompt import build_messages
from hardcase.task.sample import ASPECTS, Sample

# Mean |Δ log p| at which vLLM and the trainer compute something else. Seen with vLLM 0.30 on the same prompts: 1e-6 in
# float32, .009 in bfloat16; with images that were expanded twice .8.
MOST_DIFFERENCE: Final = {torch.float32: 0.01}
MOST_DIFFERENCE_16_BITS: Final = 0.1


def build_options(
    config: MineConfig | EvaluateConfig | GrpoConfig, model: PreTrainedConfig, processor: ProcessorMixin
) -> dict[str, Any]:
    """Build the arguments of `vllm.LLM` for prompts of five images, with room for the longest and its completion."""
    options = {"dtype": config.vllm_dtype, "limit_mm_per_prompt": {"image": IMAGES, "video": 0}}
    if hasattr(processor, "image_seq_length"):
        texts = processor.apply_chat_template(
            [build_messages(aspect) for aspect in ASPECTS], add_generation_prompt=True, tokenize=False
        )
        text_tokens = max(map(len, processor.tokenizer(texts)["input_ids"]))
        tiles = processor.image_processor.max_patches
        image_tokens = (tiles + (tiles > 1)) * processor.image_seq_length  # a thumbnail beside several tiles
        length = text_tokens + IMAGES * (1 + image_tokens) + config.max_new_tokens  # one counted, two around them
        options["max_model_len"] = min(length, model.get_text_config().max_position_embeddings)
    return options


def forbid(token: int) -> dict[int, float]:
    """Build the bias of logits that keeps a model from a token, such as an image's that was not given."""
    return {token: -100.0}  # the least that vLLM takes


class VllmEngine:
    """Run vLLM on this machine's GPU, whose prefix cache computes a prompt once."""

    def __init__(self, config: MineConfig | EvaluateConfig, model: Path, seed: int, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                "engine vllm: vLLM is not installed; use the GPU image, or set `engine: transformers`"
            ) from error
        refuse_pickles(model)
        self.vllm, self.processor = vllm, load_processor(model)
        described = AutoConfig.from_pretrained(model, trust_remote_code=False)
        self.image_token: int = described.image_token_id
        options = build_options(config, described, self.processor) | options
        self.llm = vllm.LLM(model=str(model), seed=seed, enable_prefix_caching=True, **options)

    @classmethod
    def share(cls, llm: Any, processor: Any) -> "VllmEngine":
        """Return an engine around a running vLLM."""
        import vllm

        engine = cls.__new__(cls)
        engine.vllm, engine.llm, engine.processor, engine.image_token = vllm, llm, processor, processor.image_token_id
        return engine

    def prepare(self, samples: Sequence[Sample]) -> Any:
        """Build vLLM's prompts."""
        return [
            {"prompt": text, "multi_modal_data": {"image": images}}
            for text, images in zip(*render_prompts(self.processor, samples), strict=True)
        ]

    def complete(
        self, prompts: Any, copies: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """Complete with a stream of random numbers for each prompt."""
        rng = random.Random(seed)  # requests of one seed would draw with the same noise
        sampling = [
            self.vllm.SamplingParams(
                n=copies,
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=rng.getrandbits(62),
                logit_bias=forbid(self.image_token),
            )
            for _ in prompts
        ]
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        return [[Completion(one.text, one.finish_reason == "length") for one in output.outputs] for output in outputs]


def collapse_images(ids: Sequence[int], processor: Any) -> list[int]:
    """Replace each image's tokens, start and end included, by one image token."""
    image, start, end = processor.image_token_id, processor.start_image_token_id, processor.end_image_token_id
    neighbours = zip([None, *ids[:-1]], ids, [*ids[1:], None], strict=True)
    return [
        token
        for before, token, after in neighbours
        if not (before == image and token in (image, end)) and not (token == start and after == image)
    ]


class VllmRollouts(vllm_generation.VLLMGeneration):  # type: ignore[misc]
    """Generate completions with vLLM for the weights in training, beside it on the same GPU.

    Args:
        options: arguments of `vllm.LLM` that TRL leaves open.
        args, kwargs: as for TRL's class.
    """

    def __init__(self, *args: Any, options: dict[str, Any], **kwargs: Any) -> None:
        self._options, self._compared = options, False
        self.generation_kwargs: dict[str, Any]
        super().__init__(*args, **kwargs)
        if hasattr(self.processing_class, "image_token_id"):
            bias = self.generation_kwargs.get("logit_bias", {}) | forbid(self.processing_class.image_token_id)
            self.generation_kwargs = {**self.generation_kwargs, "logit_bias": bias}

    def _init_vllm(self) -> None:
        if self.mode != "colocate" or not hasattr(vllm_generation, "LLM"):
            super()._init_vllm()
            return
        build = vllm_generation.LLM

        def build_with_options(**arguments: Any) -> Any:
            return build(**self._options | {name: value for name, value in arguments.items() if value is not None})

        with patch.object(vllm_generation, "LLM", build_with_options):
            super()._init_vllm()

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        if not is_peft_model(self.model) or self._dist.is_fsdp:
            yield from super()._iter_named_params()
            return
        layers = {
            f"{name.removeprefix('base_model.model.')}.weight": layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        unchanged = partial(patch.object, self.model, new=lambda *_, **__: None)
        with unchanged("merge_adapter"), unchanged("unmerge_adapter"):
            for name, weight in super()._iter_named_params():
                yield name, _add_adapters(weight, layers[name]) if name in layers else weight

    def sync_weights(self) -> None:
        """Copy the weights to vLLM, whose features of images are void then."""
        super().sync_weights()
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None) -> Any:
        """Return as TRL does: prompt ids, completion ids, log-probabilities and their token ids, by completion.

        Prompts whose completions are adjacent are one request, except with tensor parallelism, where TRL splits rows.
        """
        if self.mode != "colocate":
            return super().generate(prompts, images, num_generations, profiler)
        alone = self.tensor_parallel_size > 1 or len(prompts) % num_generations
        copies = 1 if alone else num_generations
        self.generation_kwargs["n"] = copies
        shared = [list(ids) for ids in prompts[::copies]]
        processor, given = self.processing_class, shared
        if images and hasattr(processor, "image_seq_length"):
            given = [collapse_images(ids, processor) for ids in shared]
        read, *completions = super().generate(given, images and images[::copies], num_generations, profiler)
        for ids, seen in zip(shared, read, strict=True):
            if ids != list(seen):
                raise HardcaseError(
                    f"grpo: vLLM read a prompt of {len(seen)} tokens instead of the trainer's {len(ids)}; install the "
                    f"versions of vLLM and TRL that hardcase names, or set grpo.engine to transformers"
                )
        return [ids for ids in shared for _ in range(copies)], *completions

    @contextmanager
    def open_engine(self) -> Iterator[VllmEngine]:
        """Yield an engine with the weights in training; all processes enter."""
        self.sync_weights()
        if self.enable_sleep_mode:
            self.llm.wake_up(tags=["kv_cache"])
        yield VllmEngine.share(self.llm, self.processing_class)
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
            self._llm_weights_sleeping = True

    def compare(self, rollouts: dict[str, Any], dtype: torch.dtype) -> None:
        """Refuse the first rollouts if their log-probabilities differ from the trainer's, whose weights are `dtype`.

        `rollouts` are TRL's: `sampling_per_token_logps` by vLLM and `old_per_token_logps` by the trainer, (R, C).
        """
        if self._compared or rollouts.get("old_per_token_logps") is None:
            return
        self._compared = True
        difference_RC = (rollouts["old_per_token_logps"] - rollouts["sampling_per_token_logps"]).abs()
        mean = float(difference_RC[rollouts["completion_mask"].bool()].nanmean())
        if self.mode != "colocate" or self.accelerator.mixed_precision != "no":
            dtype = torch.bfloat16
        elif dtype == torch.float32:
            dtype = self.llm.llm_engine.model_config.dtype
        if not mean <= (most := MOST_DIFFERENCE.get(dtype, MOST_DIFFERENCE_16_BITS)):
            raise HardcaseError(
                f"grpo: log-probabilities of vLLM differ from the trainer's by {mean:.2g} on average, and {most} is "
                f"the most that rounding explains; set grpo.vllm_dtype to float32, or grpo.engine to transformers"
            )


@torch.no_grad()
def _add_adapters(weight: Tensor, layer: Any) -> Tensor:
    """Return W + scale · BA, computed in float32 and rounded once."""
    total = weight.float()
    for adapter in layer.active_adapters:
        total = total + layer.get_delta_weight(adapter).float()
    return total.to(weight.dtype)


@contextmanager
def use_rollouts(options: dict[str, Any]) -> Iterator[None]:
    """Make trainers that are built meanwhile use `VllmRollouts`, for which TRL has no parameter."""
    with patch.object(grpo_trainer, "VLLMGeneration", partial(VllmRollouts, options=options)):
        yield
