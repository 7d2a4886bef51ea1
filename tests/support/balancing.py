"""A training in which only the first process's rollouts have anything to learn from, for test_launching."""

import json
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hardcase.config import GrpoConfig
from hardcase.data.snapshot import Snapshot
from hardcase.model.internvl import load_model, save_model, set_up_torch
from hardcase.model.trainer import HCMGRPOTrainer
from tests.support.training import trainer_of


def run(config: GrpoConfig, scratch: Path, snapshot: Path, store: str, model: Path, out: Path, balanced: bool) -> None:
    """Train two steps, and write the model and how many images each process encoded at a time."""
    samples = [*Snapshot.open(snapshot, store).open_samples("train")]
    set_up_torch(0, config.threads)
    state = PartialState()

    def reward(prompts: list[Any], **_: Any) -> list[float]:
        # Two completions of the second prompt have no advantage.
        rewards = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.5, *[0.0, 1.0, 0.0, 0.0] * 2]
        return rewards if state.is_main_process else [0.0] * len(prompts)

    shape = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 2}
    shape |= {"optim": "sgd", "learning_rate": 0.1}  # Adam would turn the rounding of a gradient near 0 into a step
    trainer = trainer_of(HCMGRPOTrainer, lambda: load_model(model), samples, scratch, {**shape, "use_cpu": True})
    trainer.reward_funcs[0], trainer._leaves_out = reward, balanced
    seen: list[int] = []
    trainer.model.model.vision_tower.register_forward_hook(lambda _, args, out: seen.append(len(out[0])))
    trainer.train()
    out.mkdir(exist_ok=True)
    (out / f"seen-{state.process_index}.json").write_text(json.dumps(seen))
    save_model(trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class, out)
