"""Two updates by HCMGRPOTrainer in each of two processes: run by `accelerate launch`, see test_two_processes.py.

Arguments: folder of a model, folder for the result.
"""

import json
import os
import random
import sys
from pathlib import Path

# Else DeepSpeed compiles an extension for minutes that two processes can do without.
from deepspeed.ops import __compatible_ops__
from trl import GRPOConfig

from hardcase.data.scenes import draw_scene, encode
from hardcase.model.internvl import load_model, set_up_torch
from hardcase.model.rows import lazy_rows, prompt_row
from hardcase.model.trainer import HCMGRPOTrainer
from hardcase.task.sample import Sample

__compatible_ops__["deepspeed_shm_comm"] = False


def main() -> None:
    """Train and save."""
    start, out = map(Path, sys.argv[1:])
    set_up_torch(0, threads=1)
    rng, samples = random.Random(0), []
    for index in range(8):
        scene = draw_scene(rng)
        images = tuple(encode(image, ".png") for image in scene.images)
        samples.append(Sample(str(index), scene.aspect, frozenset(scene.truth), None, str(index), images))
    model, processor = load_model(start)

    def spread(completions: list[object], **_: object) -> list[float]:
        return [float(place % 3) for place in range(len(completions))]

    arguments = GRPOConfig(
        output_dir=str(out),
        use_cpu=True,
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-2,
        report_to="none",
        remove_unused_columns=False,
        save_strategy="no",
        bf16=False,
        logging_steps=1,
    )
    rows = lazy_rows(len(samples), lambda index: prompt_row(samples[index]))
    trainer = HCMGRPOTrainer(
        model,
        spread,
        args=arguments,
        train_dataset=rows,
        processing_class=processor,
        weights=[1 / len(samples)] * len(samples),
    )
    trainer.train()
    trainer.save_model(str(out))
    if trainer.accelerator.is_main_process:
        told = {"world_size": trainer.accelerator.num_processes, "engine": type(trainer.model_wrapped).__name__}
        (out / "told.json").write_text(json.dumps(told))
    # All is on disk. The usual way out aborts now and then, on threads that gloo has not joined.
    trainer.accelerator.wait_for_everyone()
    os._exit(0)


main()
