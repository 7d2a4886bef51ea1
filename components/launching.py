"""A training step in one process, or in several by `accelerate launch` on one or more nodes, with DeepSpeed or without.

python -m components.launching JOB          what each of the processes runs
python -m components.launching JOB node     what each node of a TrainJob runs: its share of the processes
"""

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import validate_call
from pydantic_core import to_jsonable_python

from components.running import die_with_launcher, die_with_parent, set_up_logging
from components.trainjob import seen_by_all, train_on_nodes
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
    if config.nodes == config.processes == 1 and not config.zero:
        work(**arguments, config=config, scratch=scratch)
        return
    scratch = scratch.absolute()
    job, done, failed = scratch / "job.json", scratch / DONE, scratch / FAILED
    for sign in (done, failed):
        sign.unlink(missing_ok=True)
    with seen_by_all(arguments, scratch) if config.nodes > 1 else nullcontext(arguments) as given:
        everything = {**given, "config": config, "scratch": scratch}
        job.write_text(json.dumps({"module": work.__module__, "arguments": to_jsonable_python(everything)}))
        if config.nodes > 1:
            command = [sys.executable, "-m", "components.launching", str(job), "node"]
            ended = train_on_nodes(command, config.nodes, config.processes, scratch.name)
        else:
            ended = _on_this_machine(job, config)
        if failed.exists():
            raise error_of(**json.loads(failed.read_text(encoding="utf-8")))
        if not done.exists():
            raise HardcaseError(ended or "the training processes ended without a word; see this step's log")
        if ended:  # gloo and NCCL now and then abort on threads of theirs while processes take leave of each other
            logger.warning("all work was done, but %s", ended)


def _on_this_machine(job: Path, config: TrainConfig) -> str:
    local = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    command = [*_accelerate(config.model_dump(), ["--num_machines=1", "--main_process_port=0"]), str(job)]
    code = subprocess.run(command, env={**os.environ, **local}, check=False, preexec_fn=die_with_parent).returncode
    return f"a training process ended with {code}; its last lines are in this step's log" if code else ""


def _accelerate(config: dict[str, Any], machines: list[str]) -> list[str]:
    """What starts a machine's processes, up to the job."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *machines]
    command += [f"--num_processes={config['nodes'] * config['processes']}"]
    command += [f"--mixed_precision={'bf16' if config['bf16'] else 'no'}"]
    if config["zero"]:
        command += ["--use_deepspeed", f"--deepspeed_config_file={PROFILES / 'zero'}{config['zero']}.json"]
    else:
        command.append("--multi_gpu")  # accelerate counts this machine's GPUs, and where it finds one, starts one
    return [*command, "-m", "components.launching"]


def node() -> None:
    """One node of a job: its processes, as Kubeflow Trainer's variables place it among the others."""
    die_with_launcher()
    job = Path(sys.argv[1])
    if not job.is_file():
        sys.exit(f"{job}: this node does not see the step's scratch folder; let the runtime mount its volume there")
    config = json.loads(job.read_text(encoding="utf-8"))["arguments"]["config"]
    rank, address, port = (os.environ[f"PET_{name}"] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
    machines = [f"--num_machines={config['nodes']}", f"--machine_rank={rank}"]
    machines += [f"--main_process_ip={address}", f"--main_process_port={port}"]
    if config["zero"]:
        machines.append("--deepspeed_multinode_launcher=standard")
    # torchrun, which accelerate calls, would take these for its own arguments.
    others = {key: value for key, value in os.environ.items() if not key.startswith("PET_")}
    command = [*_accelerate(config, machines), str(job)]
    sys.exit(subprocess.run(command, env=others, check=False, preexec_fn=die_with_parent).returncode)


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
    node() if sys.argv[2:] == ["node"] else main()
