"""A work of several processes that count themselves, for test_trainjob."""

import json
from pathlib import Path

import torch
from accelerate import PartialState

from hardcase.config import GrpoConfig
from hardcase.errors import InputError


def run(config: GrpoConfig, scratch: Path, source: Path, out: Path) -> None:
    """Count all processes together, and write what was read."""
    if not source.is_file():
        raise InputError("nothing is given")
    state, ones = PartialState(), torch.ones(1)
    torch.distributed.all_reduce(ones)
    if state.is_main_process:
        out.write_text(json.dumps({"world": int(ones), "read": source.read_text()}))
