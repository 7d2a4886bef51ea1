"""Measure what sharing the prompt is worth: HCMGRPOTrainer against TRL's GRPOTrainer, same model, rows and settings.

Times are processor seconds on one thread, so that other work on the machine counts little. Every measurement has a
process of its own, so that peaks of memory do not mix. `tiny` is the model of profiles/tiny.yaml; `mid` has 25 million
parameters and prompts of about 1,300 tokens (5 images of 256), completions of at most 64, G = 8. Weights are random,
since only shapes matter. In a step, one group in four has a spread of rewards, and the first always: in trainings of
profile tiny 67 to 89% of completions had no advantage. Writes one file a name under benchmarks/results/; `ratio` is how
many times less ours takes.
`loss_backward_scaling` goes over G and the length of the prompt on a smaller model (6 million).

    python benchmarks/grpo_speed.py [NAME …]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from result import write_result

# By name: the size, what is measured, the prompts, the unit.
NAMES = {
    "grpo_step_tiny": ("tiny", "step", 16, "processor seconds for 5 whole GRPO steps of 16 prompts"),
    "grpo_step_mid": ("mid", "step", 1, "processor seconds for a whole GRPO step of one prompt"),
    "loss_backward_mid": ("mid", "loss", 1, "processor seconds for loss and backward of 8 completions"),
    "generation_mid": ("mid", "generation", 1, "processor seconds to generate 8 completions"),
    "peak_memory_mid": ("mid", "memory", 1, "GiB that loss and backward of 8 completions add to the peak"),
    "loss_memory_vocabulary": (
        "vocabulary",
        "memory",
        1,
        "GiB that loss and backward add, with 151,674 tokens to choose",
    ),
    "images_processed": ("tiny", "images", 8, "images processed for a step of 8 prompts with 5 images each"),
    "mining_mid": ("mid", "mining", 2, "processor seconds to mine 2 samples, 8 rollouts each"),
    "loss_backward_scaling": ("small", "loss", 1, "processor seconds for loss and backward, all of the cells together"),
}
SCALING = [(side, generations) for side in (112, 224, 448) for generations in (2, 4, 8, 16)]
G, COMPLETION = 8, {"tiny": 40, "mid": 64, "small": 64, "vocabulary": 64}
VOCABULARY = 151_674  # of InternVL3-2B


def measure(size: str, what: str, prompts: int, kind: str, side: int = 448, generations: int = G) -> float:
    """Return one figure of one trainer; `kind` is `stock` or `ours`."""
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from hardcase.config import TinyModelConfig
    from hardcase.data.scenes import draw_scene, encode_image
    from hardcase.model.engine import LocalEngine
    from hardcase.model.internvl import build_tiny, set_up_torch
    from hardcase.model.rollout import build_prompt_inputs
    from hardcase.model.rows import build_lazy_dataset, build_prompt_row
    from hardcase.model.sft import collect_vocabulary_texts
    from hardcase.model.trainer import HCMGRPOTrainer
    from hardcase.task.sample import Sample

    set_up_torch(0, threads=1)
    rng = random.Random(0)
    samples = []
    for index in range(max(prompts, 2) * 5):
        scene = draw_scene(rng)
        images = tuple(encode_image(image, ".png") for image in scene.images)
        samples.append(Sample(str(index), scene.aspect, frozenset(scene.truth), scene.reasoning, "", images))
    vision = {"image_size": side, "patch_size": 14}
    shapes: dict[str, dict[str, int]] = {
        "tiny": {},
        "small": vision | {"vision_hidden": 128, "vision_layers": 2, "text_hidden": 256, "text_layers": 6, "heads": 4},
        "mid": vision | {"vision_hidden": 256, "vision_layers": 6, "text_hidden": 512, "text_layers": 8, "heads": 8},
    }
    shapes["vocabulary"] = shapes["small"]
    model, processor = build_tiny(TinyModelConfig(**shapes[size]), collect_vocabulary_texts(samples, warm_up=True), 0)
    if size == "vocabulary":
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    if what == "mining":
        return _seconds(_mining(kind, LocalEngine(model, processor), samples[:prompts], build_prompt_inputs))
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=prompts * generations,
            num_generations=generations,
            max_completion_length=COMPLETION[size],
            max_steps=5 if (size, what) == ("tiny", "step") else 1,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            bf16=False,
            disable_tqdm=True,
        )
        trainer = {"stock": GRPOTrainer, "ours": HCMGRPOTrainer}[kind](
            model,
            partial(_reward, generations=generations),
            args=arguments,
            train_dataset=build_lazy_dataset(len(samples), lru_cache(lambda index: build_prompt_row(samples[index]))),
            processing_class=processor,
        )
        if what == "step":
            return _seconds(trainer.train)
        if what == "images":
            return _count_images(processor.image_processor, trainer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = [build_prompt_row(sample) for sample in samples[:prompts] for _ in range(generations)]
        if what == "generation":
            spent: list[float] = []
            generate = trainer._generate_single_turn
            trainer._generate_single_turn = lambda *a, **k: _noting(spent, lambda: generate(*a, **k))
            trainer._generate_and_score_completions(rows)
            return sum(spent)
        trainer.max_completion_length = 1
        batch = trainer._generate_and_score_completions(rows)
        width = COMPLETION[size]
        lengths = width - torch.arange(len(rows)) % generations * width // (2 * generations)  # as uneven as answers are
        batch["completion_ids"] = torch.randint(20, len(processor.tokenizer), (len(rows), width))
        batch["completion_mask"] = (torch.arange(width) < lengths[:, None]).long()
        batch["advantages"] = torch.linspace(-1, 1, len(rows))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent_here = _seconds(lambda: trainer._compute_loss(trainer.model, batch).backward())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return peak / 2**20 if what == "memory" else spent_here


def _reward(prompts: list[Any], generations: int, **_: Any) -> list[float]:
    """Reward half of the completions of one group in four, and no other."""
    groups = [index // generations for index in range(len(prompts))]
    return [float(group % 4 == 0 and index % 2) for index, group in enumerate(groups)]


def _count_images(processor: Any, trainer: Any) -> float:
    counts, preprocess = list[int](), processor.preprocess

    def count(images: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(sum(len(own) if isinstance(own, list) else 1 for own in images))
        return preprocess(images, *args, **kwargs)

    processor.preprocess = count
    trainer.train()
    return float(sum(counts))


def _mining(kind: str, engine: Any, samples: list[Any], build_prompt_inputs: Any) -> Any:
    if kind == "ours":
        return lambda: engine.complete(engine.prepare(samples), G, COMPLETION["mid"], temperature=1.0, seed=0)

    def stock() -> None:
        inputs = build_prompt_inputs(engine.processor, samples, engine.model.device)
        engine.model.eval().generate(
            **inputs, do_sample=True, top_k=0, num_return_sequences=G, max_new_tokens=COMPLETION["mid"]
        )

    return stock


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _noting(spent: list[float], work: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = work()
    spent.append(time.process_time() - start)
    return result


def main() -> None:
    """Measure every name, each trainer in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, kind = options.one
        cells = SCALING if name == "loss_backward_scaling" else [(448, G)]
        print(json.dumps([measure(*NAMES[name][:3], kind, *cell) for cell in cells]))
        return
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: not measured here; name some of {', '.join(NAMES)}")
    for name in options.names or NAMES:
        figures: dict[str, list[float]] = {}
        for kind in ("stock", "ours"):
            command = [sys.executable, __file__, "--one", name, kind]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}, {kind}: {done.stderr[-2000:]}")
            figures[kind] = json.loads(done.stdout.splitlines()[-1])
        stock, ours = sum(figures["stock"]), sum(figures["ours"])
        more: dict[str, Any] = {}
        if len(figures["ours"]) > 1:
            more["cells"] = [
                {"picture_side": side, "generations": generations, "stock": theirs, "ours": own, "ratio": theirs / own}
                for (side, generations), theirs, own in zip(SCALING, figures["stock"], figures["ours"], strict=True)
            ]
        result = write_result(
            name,
            value=ours,
            baseline=stock,
            ratio=stock / ours,
            unit=f"{NAMES[name][3]}; baseline: stock TRL 1.16, ratio: baseline / value",
            command=f"grpo_speed.py {name}",
            on=", one thread",
            **more,
        )
        print(f"{name:20} {stock:8.2f} → {ours:8.2f}   {result['ratio']:.1f}×", flush=True)


if __name__ == "__main__":
    main()
