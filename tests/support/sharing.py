"""A work in shards that leaves what it did, for test_launching and test_trainjob."""

import os
import time
from pathlib import Path

from hardcase.config import EvaluateConfig
from hardcase.data.completions import Completion, write_completions
from hardcase.errors import InputError


def run(config: EvaluateConfig, shard: str, scratch: Path, answers: Path, refused: Path) -> None:
    """Answer with this process's GPU, which nobody else may use meanwhile; fail while `refused` names this shard.

    A shard that fails waits until the first is done, and until the last is at work.
    """
    place, gpu = scratch.parent, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with (scratch / "attempts").open("a") as attempts:
        attempts.write(f"{os.getpid()}\n")
    number, shards = map(int, shard.split("/"))
    if refused.is_file() and refused.read_text() == shard:
        while not (place / f"shard-1-of-{shards}" / "done").exists():
            time.sleep(0.05)
        while not (place / f"shard-{shards}-of-{shards}" / "attempts").exists():
            time.sleep(0.05)
        raise InputError(f"shard {shard} is refused")
    while refused.is_file() and number == shards:
        time.sleep(0.05)
    if gpu:
        (place / gpu).touch(exist_ok=False)
        time.sleep(0.5)
        (place / gpu).unlink()
    write_completions([shard], [[Completion(gpu)]], answers)
