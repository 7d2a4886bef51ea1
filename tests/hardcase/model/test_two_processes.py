"""Two processes train under DeepSpeed on CPU: groups stay whole on a rank, and what is saved is safetensors."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.model.internvl import load_model, save_model

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_and_save_under_zero(
    fresh_model: Callable[[], tuple[PreTrainedModel, ProcessorMixin]], tmp_path: Path, stage: int
) -> None:
    start, out, settings = tmp_path / "model", tmp_path / "out", tmp_path / "zero.json"
    save_model(*fresh_model(), start)
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings.write_text(json.dumps({"zero_optimization": zero, **dict.fromkeys(sizes, "auto")}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed"]
    command += ["--deepspeed_config_file", str(settings), "--num_processes", "2", "--num_machines", "1"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, str(SCRIPT), str(start), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((out / "told.json").read_text())
    assert (told["world_size"], told["engine"]) == (2, "DeepSpeedEngine")
    before, after = load_model(start)[0].state_dict(), load_model(out)[0].state_dict()
    assert any(not before[key].equal(after[key]) for key in before)
    assert load_file(out / "model.safetensors")
