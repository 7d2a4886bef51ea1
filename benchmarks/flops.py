"""Count the FLOPs of a GRPO step on the shape of InternVL3-2B: TRL's GRPOTrainer against HCMGRPOTrainer.

Both trainers' own code runs on a model without weights (torch's meta device) under torch's FLOP counter. The step is
that of a GPU with profile internvl3-2b: eight prompts of five images, eight completions of 256 tokens each, vLLM,
activation checkpointing. Stock TRL computes log-probabilities of the rollouts, and again for the loss, each with every
copy of the prompt. In trainings of profile tiny, 67 to 89% of groups had no spread of rewards; here five of eight.
Attention is counted as if no mask existed, and generation apart, as a forward pass over all of its tokens.

    python benchmarks/flops.py
"""

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from unittest.mock import Mock, patch

import torch
import trl.trainer.utils
from result import write_result
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedModel,
    Qwen2Config,
)
from trl import GRPOConfig, GRPOTrainer

from hardcase.config import TinyModelConfig
from hardcase.data.scenes import draw_scene, encode_image
from hardcase.model.internvl import build_tiny
from hardcase.model.rows import build_lazy_dataset, build_prompt_row
from hardcase.model.sft import collect_vocabulary_texts
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.task.sample import Sample

PROMPTS, WITH_SPREAD, G, PASSES, COMPLETION = 8, 3, 8, 4, 256
TERA: Final = 1e12
aten = torch.ops.aten


class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Run every operation on a tensor without data there, while masks and indices, which decide shapes, stay real."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("device") == torch.device("meta") and not _is_meta(args[0]):
            return args[0] if not args[0].is_floating_point() else func(*args, **kwargs)
        if not tree_any(_is_meta, (args, kwargs)):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return 0.0  # of a metric
        if func is aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            mask = args[1][0]
            count = mask.numel() if mask.is_meta else int(mask.sum())
            args = args[0].flatten(0, mask.ndim - 1), [torch.empty(count, dtype=torch.long, device="meta")]
        return func(*tree_map_only(Tensor, _drop_data, args), **tree_map_only(Tensor, _drop_data, kwargs))


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _drop_data(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def build_2b(config: InternVLConfig) -> PreTrainedModel:
    """Build the shape of OpenGVLab/InternVL3-2B-hf without weights; special tokens are those of `config`."""
    text = Qwen2Config(
        vocab_size=151_674,
        hidden_size=1536,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        tie_word_embeddings=True,
    )
    described = InternVLConfig(
        vision_config=InternVLVisionConfig(),  # InternViT-300M
        text_config=text,
        image_token_id=config.image_token_id,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(described)
    model.to = lambda *_, **__: model
    return model


def count_step(kind: type[GRPOTrainer], spread: int) -> dict[str, float]:
    """Return TFLOPs of a step by its passes, where the first `spread` groups have a spread of rewards."""
    rng, samples = random.Random(0), list[Sample]()
    for index in range(PROMPTS):
        scene = draw_scene(rng)
        images = tuple(encode_image(image, ".png") for image in scene.images)
        samples.append(Sample(str(index), scene.aspect, frozenset(scene.truth), scene.reasoning, "", images))
    sizes = TinyModelConfig(image_size=448, patch_size=14)
    tiny, processor = build_tiny(sizes, collect_vocabulary_texts(samples, warm_up=True), 0)
    rows = [row for row in map(build_prompt_row, samples) for _ in range(G)]
    taught = [float(index < spread * G and index % 2) for index in range(len(rows))]
    counted = dict[str, float]()

    def count(name: str, work: Callable[[], Any]) -> Any:
        as_on_gpu = patch.object(trl.trainer.utils, "_use_triton", lambda _: True)  # scores only what is not masked
        without_autocast = patch.object(torch, "is_autocast_enabled", lambda *_: False)
        on_meta = OnMeta()  # type: ignore[no-untyped-call]
        with as_on_gpu, without_autocast, on_meta, FlopCounterMode(display=False) as counter:
            result = work()
        counted[name] = counted.get(name, 0) + counter.get_total_flops() / TERA
        return result

    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            build_2b(tiny.config),
            lambda **_: taught,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=PROMPTS * G // PASSES,
                gradient_accumulation_steps=PASSES,
                num_generations=G,
                max_completion_length=COMPLETION,
                gradient_checkpointing=True,
                remove_unused_columns=False,
                report_to="none",
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=build_lazy_dataset(PROMPTS, lambda index: rows[index * G]),
            processing_class=processor,
        )
    trainer.model.train()
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.current_gradient_accumulation_steps = PASSES
    trainer.use_vllm, trainer.vllm_generation = True, Mock()
    trainer.accelerator.pad_across_processes = lambda values, **_: values  # would ask for sizes of a tensor's data
    answer, unlikely = [20] * COMPLETION, [0.0] * COMPLETION
    trainer._generate_single_turn = lambda ids, *_, **__: ([answer for _ in ids], [unlikely for _ in ids])
    for _ in range(PASSES):
        batch = count("old_log_probabilities", lambda: trainer._prepare_inputs(rows))
        loss = count("loss_forward", partial(trainer._compute_loss, trainer.model, batch))
        count("loss_backward", loss.backward)
        trainer._step += 1
    return counted


def main() -> None:
    """Count and write the result."""
    stock, ours = count_step(GRPOTrainer, PROMPTS), count_step(HCMGRPOTrainer, WITH_SPREAD)
    every = count_step(HCMGRPOTrainer, PROMPTS)
    result = write_result(
        "flops_2b",
        value=sum(ours.values()),
        baseline=sum(stock.values()),
        ratio=sum(stock.values()) / sum(ours.values()),
        unit=f"TFLOPs of a GRPO step of {PROMPTS} prompts on the shape of InternVL3-2B without generation, "
        f"{PROMPTS - WITH_SPREAD} groups without spread; baseline: stock TRL 1.16, ratio: baseline / value",
        command="flops.py",
        passes={"stock": stock, "ours": ours},
        all_groups_with_spread=sum(every.values()),
        generation={"each_copy": stock["old_log_probabilities"], "prompt_once": every["loss_forward"]},
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
