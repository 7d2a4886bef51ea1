"""A training step in one process, or in several on this machine by `accelerate launch`, with or without DeepSpeed.

python -m components.launching JOB     what each of the processes runs
"""

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import validate_call
from pydantic_core import to_jsonable_python

from components.running import die_with_parent, set_up_logging
from hardcase.config import PROFILES, TrainConfig
from hardcase.errors import HardcaseError, error_of

DONE, FAILED = "done", "failed.json"
logger = logging.getLogger(__name__)


def in_processes(work: Callable[..., None], config: TrainConfig, scratch: Path, **arguments: Any) -> None:
    """Call `work(config=config, scratch=scratch, **arguments)` in as many processes as `config` says.

    Args:
        work: a step's `run`; its annotations say how to read the arguments back from JSON.
        config: of the training.
        scratch: the step's private folder.
        arguments: paths, configuration, plain values.

    Raises:
        HardcaseError: as the first process that failed raised it.
    """
    everything = {**arguments, "config": config, "scratch": scratch}
    if config.processes == 1 and not config.zero:
        work(**everything)
        return
    job, done, failed = scratch / "job.json", scratch / DONE, scratch / FAILED
    job.write_text(json.dumps({"module": work.__module__, "arguments": to_jsonable_python(everything)}))
    for sign in (done, failed):
        sign.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--main_process_port=0"]
    command += [f"--num_processes={config.processes}", f"--mixed_precision={'bf16' if config.bf16 else 'no'}"]
    if config.zero:
        command += ["--use_deepspeed", f"--deepspeed_config_file={PROFILES / f'zero{config.zero}.json'}"]
    command += ["-m", "components.launching", str(job)]
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    code = subprocess.run(command, env={**os.environ, **local}, check=False, preexec_fn=die_with_parent).returncode
    if failed.exists():
        raise error_of(**json.loads(failed.read_text(encoding="utf-8")))
    if not done.exists():
        raise HardcaseError(f"a training process ended with {code}; its last lines are in this step's log")
    if code:  # gloo and NCCL now and then abort on threads of theirs while processes take leave of each other
        logger.warning("all work was done, but a training process ended with %d", code)


def main() -> None:
    """One process of a job."""
    die_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    arguments = job["arguments"]
    if os.environ.get("RANK") == "0":
        set_up_logging()
    if arguments["config"]["zero"] and not torch.cuda.is_available():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for minutes
        deepspeed.init_distributed("gloo")  # on GPUs accelerate does it; else ZeRO-3 believes that it is alone
    try:
        validate_call(importlib.import_module(job["module"]).run)(**arguments)
    except HardcaseError as error:
        logger.exception("failed")
        said = {"exit_code": error.exit_code, "message": str(error)}
        Path(arguments["scratch"], FAILED).write_text(json.dumps(said), encoding="utf-8")
        sys.exit(error.exit_code)
    state = PartialState()
    if state.is_main_process:
        Path(arguments["scratch"], DONE).touch()
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
