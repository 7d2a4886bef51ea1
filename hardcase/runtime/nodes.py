"""A command on several nodes: a TrainJob of Kubeflow Trainer, or processes of this machine, both through its SDK.

A node runs `python -m hardcase.runtime.processes JOB node`. Its GPUs, memory, account and volumes are those of the
TrainingRuntime that `HARDCASE_TRAINING_RUNTIME` or `HARDCASE_INGEST_RUNTIME` names, so a step knows of no cluster. All
nodes must see the scratch folders (docs/decisions/0009). For a trial without a cluster, `HARDCASE_TRAINER=local` runs
each node as a job of the SDK's local back end, which knows jobs of one node only, with the variables that Trainer sets.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from hardcase.errors import InputError
from hardcase.lifetime import die_with_parent

LAST_LINES: Final = 20
NodeKind = Literal["training", "ingest"]
SECONDS_BETWEEN: Final = 0.5
SECONDS_OF_LAST_LINES: Final = 10
LOOPBACK: Final = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def run_on_nodes(command: Sequence[str], nodes: int, processes: int, name: str, kind: NodeKind = "training") -> str:
    """Run a command on several nodes and print the first node's log; all nodes end when this process is stopped.

    The command finds in its environment what `torchrun` does: `PET_NODE_RANK`, `PET_MASTER_ADDR`, `PET_MASTER_PORT`.
    It starts `processes` processes, one for each GPU. The same work has the same `name`.

    Returns:
        Which node failed, and its last lines; empty if none did.

    Raises:
        InputError: no cluster is known, or its runtime is missing or does not fit.
        HardcaseError: the cluster refuses the job, or lost it.
    """
    name = f"hardcase-{name}"[:63].rstrip("-.").lower()
    if (trainer := os.environ.get("HARDCASE_TRAINER", "kubernetes")) == "local":
        return _train_locally(command, nodes, name)
    if trainer != "kubernetes":
        raise InputError(f"HARDCASE_TRAINER is {trainer!r}: say local or kubernetes")
    from hardcase.runtime.trainjob import run_trainjob

    return run_trainjob(command, nodes, processes, name, kind)


def _node(arguments):  # type: ignore[no-untyped-def]
    """Run a node: the local back end takes a function's source, and gives it a Python without packages."""
    import subprocess
    import sys

    sys.exit(subprocess.run(arguments["command"], cwd=arguments["folder"], check=False).returncode)


def _remove_folders(name: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{name}-node-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _train_locally(command: Sequence[str], nodes: int, name: str) -> str:
    from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient
    from kubeflow.trainer.options import Name

    client, here = TrainerClient(LocalProcessBackendConfig()), Path.cwd()
    _remove_folders(name)  # of a step that was killed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = [f"{name}-node-{rank}" for rank in range(nodes)]
    shared = {"PET_NNODES": nodes, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, **LOOPBACK}
    # The SDK makes an environment with the first `python` of the path, which need not be able to.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # The SDK stops a job only when that prints something: nodes watch a process instead, which ends with this one.
    life = subprocess.Popen(["sleep", "infinity"], preexec_fn=die_with_parent)  # noqa: PLW1509
    show = threading.Thread(target=lambda: list(client.get_job_logs(names[0], follow=True)), daemon=True)
    try:
        for rank, node in enumerate(names):
            own = {**shared, "PET_NODE_RANK": rank, "HARDCASE_LAUNCHER_PID": life.pid}
            environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
            runtime = client.get_runtime("torch-distributed")
            runtime.trainer.framework = "python"  # else it looks for a torchrun that was never installed
            arguments = {"command": list(command), "folder": str(here)}
            trainer = CustomTrainer(func=_node, func_args=arguments, env=environment)
            client.train(runtime, trainer=trainer, options=[Name(name=node)])
            client.wait_for_job_status(node, {"Running", "Complete", "Failed"}, timeout=60, polling_interval=1)
            os.chdir(here)  # the SDK changes it
        show.start()
        while True:
            states = {node: client.get_job(node).status for node in names}
            if failed := next((node for node, state in states.items() if state == "Failed"), ""):
                lines = list(client.get_job_logs(failed))[-LAST_LINES:]
                return "\n".join([f"{failed} failed; its last lines:", *lines])
            if set(states.values()) == {"Complete"}:
                return ""
            time.sleep(SECONDS_BETWEEN)
    finally:
        life.kill()
        life.wait()
        if show.is_alive():
            show.join(SECONDS_OF_LAST_LINES)
        _remove_folders(name)
