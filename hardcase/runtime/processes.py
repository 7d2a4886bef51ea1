"""A step's work in several processes, on one or more nodes: a training by `accelerate launch`, or shards.

python -m hardcase.runtime.processes JOB          what each process of a training runs
python -m hardcase.runtime.processes JOB N        what the process of shard N of a job runs, counted from 0
python -m hardcase.runtime.processes JOB node     what each node of a TrainJob runs: its share of the processes
"""

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import validate_call
from pydantic_core import to_jsonable_python

from hardcase.config import PROFILES, TrainConfig
from hardcase.errors import HardcaseError, build_error
from hardcase.lifetime import STOP, STOPPED, die_with_launcher, die_with_parent, exit_on_sigterm, note_sigterm
from hardcase.runtime.nodes import LOOPBACK, NodeKind, run_on_nodes
from hardcase.runtime.running import set_up_logging
from hardcase.store.digest import bytes_digest

DONE, FAILED = "done", "failed.json"
COMMAND: Final = (sys.executable, "-P", "-m", "hardcase.runtime.processes")  # -P: not from the working directory
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
logger = logging.getLogger(__name__)


def in_processes(work: Callable[..., None], config: TrainConfig, scratch: Path, **arguments: Any) -> None:
    """Call `work(config=config, scratch=scratch, **arguments)` in as many processes as `config` requests.

    `work` is a step's `run`: its annotations define how the arguments are read back from JSON. With several nodes, all
    see `scratch`, and every path is below it. The error of the first process that failed is raised.
    """
    (scratch / STOP).unlink(missing_ok=True)
    if config.nodes == config.processes == 1 and not config.zero:
        work(**arguments, config=config, scratch=scratch)
        return
    (scratch / DONE).unlink(missing_ok=True)
    everything = {**arguments, "config": config, "scratch": scratch}
    _run(work, everything, [], scratch, config.nodes, config.processes, "training")


def in_shards(
    work: Callable[..., None],
    shards: int,
    nodes: int,
    scratch: Path,
    written: str,
    kind: NodeKind = "training",
    **arguments: Any,
) -> list[Path]:
    """Call `work(shard="i/n", scratch=..., <written>=..., **arguments)` for each shard, all at once; return the tables.

    A shard that finished before the step was stopped is not run again. The shards are divided among `nodes` of a `kind`
    (1 is this machine). In training each has a GPU to itself, and where this machine has GPUs, there is a shard for
    each of them. `written` names the argument that takes the path of what a shard writes. The rest is as of
    `in_processes`.
    """
    if nodes == 1 and kind == "training":
        shards = len(_list_gpus(os.environ)) or shards
    own = list[dict[str, Any]]()
    for number in range(1, shards + 1):
        folder = scratch / f"shard-{number}-of-{shards}"
        folder.mkdir(parents=True, exist_ok=True)
        own.append({"shard": f"{number}/{shards}", "scratch": folder, written: folder / "written"})
    # A vLLM engine keeps its share of the GPU as long as its process lives, and a step may need another one next.
    if shards == 1 and getattr(arguments["config"], "engine", "") != "vllm":
        work(**arguments, **own[0])
    elif left := [shard for shard in own if not (shard["scratch"] / DONE).exists()]:
        _run(work, arguments, left, scratch, nodes, -(-len(left) // nodes), kind)
    return [shard[written] for shard in own]


def _run(
    work: Callable[..., None],
    arguments: dict[str, Any],
    shards: list[dict[str, Any]],
    scratch: Path,
    nodes: int,
    processes: int,
    kind: NodeKind,
) -> None:
    """Run a job: a training, or else shards with the arguments of their own."""
    job, folders = scratch.absolute() / "job.json", [shard["scratch"] for shard in shards] or [scratch]
    for folder in folders:
        (folder / FAILED).unlink(missing_ok=True)
    content = {
        "module": work.__module__,
        "function": work.__name__,
        "kind": kind,
        "arguments": _absolute(arguments),
        "shards": list(map(_absolute, shards)),
    }
    job.write_text(json.dumps(to_jsonable_python(content)), encoding="utf-8")
    code = 0
    if nodes > 1:
        name = f"{work.__module__.split('.')[-2]}-{bytes_digest(bytes(job))[:16]}"
        ended = run_on_nodes([*COMMAND, str(job), "node"], min(nodes, len(shards) or nodes), processes, name, kind)
    else:
        code = _share(job, 0, 1, ["--num_machines=1", "--main_process_port=0"], {**os.environ, **LOOPBACK})
        ended = f"a process ended with {code}; its last lines are in this step's log" if code else ""
    # A network volume's cache may go on missing a name that was missing a moment ago; a folder is read again.
    signs = [path for folder in folders for path in folder.iterdir() if path.name in (DONE, FAILED)]
    if failed := next((sign for sign in signs if sign.name == FAILED), None):
        raise build_error(**json.loads(failed.read_text(encoding="utf-8")))
    if len(signs) < len(folders):
        if nodes == 1 and code == STOPPED:
            sys.exit(STOPPED)
        raise HardcaseError(ended or "the processes ended without a word; see this step's log")
    if ended:  # gloo and NCCL now and then abort on threads of theirs while processes take leave of each other
        logger.warning("all work was done, but %s", ended)


def _absolute(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.absolute() if isinstance(value, Path) else value for name, value in arguments.items()}


def _share(path: Path, rank: int, nodes: int, machines: list[str], environment: dict[str, str]) -> int:
    """Run a node's share of a job's processes, and return the exit code of the first that failed."""
    job, environment = json.loads(path.read_text(encoding="utf-8")), {**environment, "PYTHONSAFEPATH": "1"}
    if job["shards"]:
        gpus = _list_gpus(environment) if job["kind"] == "training" else []
        return _side_by_side(path, range(len(job["shards"]))[rank::nodes], gpus, environment)
    config = job["arguments"]["config"]
    command = [*COMMAND[:3], "accelerate.commands.launch", *machines]
    command += [f"--num_processes={config['nodes'] * config['processes']}"]
    command += [f"--mixed_precision={'bf16' if config['bf16'] else 'no'}"]
    if config["zero"]:
        command += ["--use_deepspeed", f"--deepspeed_config_file={PROFILES / 'zero'}{config['zero']}.json"]
        command.append("--deepspeed_multinode_launcher=standard")
    else:
        command.append("--multi_gpu")  # accelerate counts this machine's GPUs, and where it finds one, starts one
    command += [*COMMAND[2:], str(path)]
    # accelerate adds its working directory to PYTHONPATH (accelerate 1.15, utils/launch.py:557): not the user's.
    environment["HARDCASE_FOLDER"] = str(Path.cwd())
    # SIGTERM to accelerate would leave 30 s to its processes, so they are asked by a file, and end by themselves.
    with note_sigterm(path.parent / STOP):
        done = subprocess.run(command, cwd=path.parent, env=environment, check=False, preexec_fn=die_with_parent)
    return STOPPED if (path.parent / STOP).exists() else done.returncode


def _list_gpus(environment: Mapping[str, str]) -> list[str]:
    import torch

    count = torch.cuda.device_count()
    return environment.get(VISIBLE, ",".join(map(str, range(count)))).split(",")[:count]


def _side_by_side(job: Path, shards: Sequence[int], gpus: list[str], environment: dict[str, str]) -> int:
    """Run shards at once, or as many as there are GPUs; the first that fails ends the others."""
    free, waiting, at_work = gpus or [""] * len(shards), list(shards), dict["subprocess.Popen[bytes]", str]()
    try:
        while waiting or at_work:
            while waiting and free:
                own = {VISIBLE: gpu} if (gpu := free.pop(0)) else {}
                command = [*COMMAND, str(job), str(waiting.pop(0))]
                at_work[subprocess.Popen(command, env={**environment, **own}, preexec_fn=die_with_parent)] = gpu  # noqa: PLW1509
            for process in [process for process in at_work if process.poll() is not None]:
                free.append(at_work.pop(process))
                if process.returncode:
                    return process.returncode
            time.sleep(0.1)
        return 0
    finally:
        for process in at_work:
            process.kill()
            process.wait()


def node() -> None:
    """Run one node of a job: its processes, ranked as Kubeflow Trainer's variables say."""
    # The first process of a container ignores what it has no handler for, and Kubernetes waits 30 s before it kills it.
    exit_on_sigterm()
    die_with_launcher()
    job = Path(sys.argv[1])
    if not job.is_file():
        sys.exit(f"{job}: this node does not see the step's scratch folder; let the runtime mount its volume there")
    names = ("NODE_RANK", "NNODES", "MASTER_ADDR", "MASTER_PORT")
    rank, nodes, address, port = (os.environ[f"PET_{name}"] for name in names)
    machines = [f"--num_machines={nodes}", f"--machine_rank={rank}"]
    machines += [f"--main_process_ip={address}", f"--main_process_port={port}"]
    # torchrun, which accelerate calls, would take these for its own arguments.
    others = {key: value for key, value in os.environ.items() if not key.startswith("PET_")}
    sys.exit(_share(job, int(rank), int(nodes), machines, others))


def main() -> None:
    """Run one process of a job."""
    die_with_parent()
    os.chdir(os.environ.get("HARDCASE_FOLDER") or Path.cwd())
    job, shard = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2:]
    arguments = {**job["arguments"], **(job["shards"][int(shard[0])] if shard else {})}
    if (shard or [os.environ.get("RANK", "")]) == ["0"]:
        set_up_logging()
    if not shard and arguments["config"]["zero"]:
        _meet_without_gpus()
    scratch, done = Path(arguments["scratch"]), True
    try:
        validate_call(getattr(importlib.import_module(job["module"]), job["function"]))(**arguments)
    except HardcaseError as error:
        logger.exception("failed")
        content = {"exit_code": error.exit_code, "message": str(error)}
        (scratch / FAILED).write_text(json.dumps(content), encoding="utf-8")
        sys.exit(error.exit_code)
    except SystemExit as end:  # a training that was asked to end: the launcher finds no sign that it is done
        if end.code != STOPPED:
            raise
        done = False
    if shard:
        (scratch / DONE).touch()
        return
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process and done:
        (scratch / DONE).touch()
    state.wait_for_everyone()
    state.destroy_process_group()


def _meet_without_gpus() -> None:
    import torch

    if not torch.cuda.is_available():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for minutes
        deepspeed.init_distributed("gloo")  # on GPUs accelerate does it; else ZeRO-3 believes that it is alone


if __name__ == "__main__":
    node() if sys.argv[2:] == ["node"] else main()
