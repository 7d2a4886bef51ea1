"""Training on several nodes, as a TrainJob of Kubeflow Trainer through its SDK.

A node runs `python -m components.launching JOB node`. What it is made of (GPUs, memory, account, volumes) is said by
the TrainingRuntime that `HARDCASE_TRAINING_RUNTIME` names, so that a step knows of no cluster; all nodes must see the
scratch folders (docs/decisions/0009). Without a cluster `HARDCASE_TRAINER=local` runs each node as a job of the SDK's
local back end, which knows jobs of one node only, with the variables that Trainer sets: to see that it works.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from components.running import die_with_parent
from hardcase.errors import HardcaseError, InputError

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

RUNTIME: Final = "hardcase-train"
QUEUE: Final = {"kueue.x-k8s.io/queue-name": "gpu"}
ENDED: Final = ("Complete", "Failed")
SECONDS_BETWEEN = 2.0
# How long the cluster's API may be away while its nodes go on.
SECONDS_AWAY = 300.0
LAST_LINES: Final = 20
logger = logging.getLogger(__name__)


def train_on_nodes(command: Sequence[str], nodes: int, processes: int, name: str) -> str:
    """Run a command on each of several nodes, the first one's log in ours; none goes on when this process is stopped.

    Args:
        command: finds in its environment what `torchrun` does: `PET_NODE_RANK`, `PET_MASTER_ADDR`, `PET_MASTER_PORT`.
        nodes: how many.
        processes: that the command starts, one a GPU.
        name: of the step's work; the same work has the same name.

    Returns:
        Which node failed, and its last lines; empty if none did.

    Raises:
        InputError: no cluster is known, or its runtime is not there or does not fit.
        HardcaseError: the cluster refuses the job, or lost it.
    """
    name = f"hardcase-{name}"[:63].rstrip("-.").lower()
    return _locally(command, nodes, name) if _local() else _on_cluster(command, nodes, processes, name)


def _local() -> bool:
    kind = os.environ.get("HARDCASE_TRAINER", "kubernetes")
    if kind not in ("local", "kubernetes"):
        raise InputError(f"HARDCASE_TRAINER is {kind!r}: say local or kubernetes")
    return kind == "local"


def _on_cluster(command: Sequence[str], nodes: int, processes: int, name: str) -> str:
    from kubeflow.trainer import CustomTrainerContainer, TrainerClient
    from kubeflow.trainer.options import Labels, Name, TrainerCommand

    wanted = os.environ.get("HARDCASE_TRAINING_RUNTIME") or RUNTIME
    try:
        client = TrainerClient()
        runtime = client.get_runtime(wanted)
    except Exception as error:
        raise InputError(
            f"nodes is {nodes}: no Kubeflow Trainer with the runtime {wanted} was found: {_reason(error)}; "
            "docs/gpu.md says what the cluster needs, HARDCASE_TRAINER=local does without"
        ) from error
    gpus = int(runtime.trainer.device_count) // runtime.trainer.num_nodes if runtime.trainer.device == "gpu" else 0
    if 0 < gpus < processes:
        raise InputError(f"runtime {wanted}: {gpus} GPUs a node for {processes} processes; set one to the other")
    image = os.environ.get("HARDCASE_IMAGE") or runtime.trainer.image
    options = [Name(name=name), TrainerCommand(command=list(command)), *([Labels(labels=QUEUE)] if gpus else [])]
    _delete(client, name)  # of a step that was killed: its nodes would write into the same folder
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        client.train(runtime, trainer=CustomTrainerContainer(image=image, num_nodes=nodes), options=options)
        logger.info("TrainJob %s: %d nodes of runtime %s", name, nodes, wanted)
        return _followed(client, name)
    except RuntimeError as error:
        raise HardcaseError(f"TrainJob {name}: {_reason(error)}") from error
    finally:
        _delete(client, name)
        signal.signal(signal.SIGTERM, before)


def _followed(client: "TrainerClient", name: str) -> str:
    pod, shown = "", 0
    while True:
        job = _there(client, name)
        first = next((step.pod_name for step in job.steps if step.name == "node-0"), "")
        pod, shown = first, shown if first == pod else 0  # a pod made anew begins its log anew
        with suppress(RuntimeError):  # its log cannot be read yet, or the connection broke
            for number, line in enumerate(client.get_job_logs(name, follow=True)):
                if number >= shown:
                    sys.stdout.write(f"{line.rstrip()}\n")
                    shown = number + 1
        sys.stdout.flush()
        if job.status == "Complete":
            return ""
        if job.status == "Failed":
            return _last_words(client, name)
        time.sleep(SECONDS_BETWEEN)


def _there(client: "TrainerClient", name: str) -> Any:
    began = time.monotonic()
    while True:
        try:
            return client.get_job(name)
        except (RuntimeError, TimeoutError) as error:
            if getattr(error.__cause__, "status", None) == 404:
                raise HardcaseError(f"TrainJob {name}: deleted while it was at work; run again to go on") from error
            if time.monotonic() - began > SECONDS_AWAY:
                raise
            logger.warning("TrainJob %s: %s; asking again", name, _reason(error))
            time.sleep(SECONDS_BETWEEN)


def _last_words(client: "TrainerClient", name: str) -> str:
    steps = _there(client, name).steps
    broken = [step.name for step in steps if step.status == "Failed"]
    said = []
    for step in broken:
        with suppress(RuntimeError):
            said += [f"{step} failed; its last lines:", *list(client.get_job_logs(name, step=step))[-LAST_LINES:]]
    return "\n".join(
        [f"TrainJob {name} failed", *(said or ["its pods are gone; `kubectl describe trainjob` tells more"])]
    )


def _delete(client: "TrainerClient", name: str) -> None:
    """Delete the job, and wait until it is gone with its pods' claim on the name."""
    with suppress(RuntimeError, TimeoutError):
        client.delete_job(name)
        for _ in range(60):
            client.get_job(name)
            time.sleep(SECONDS_BETWEEN / 2)


def _reason(error: Exception) -> str:
    """What the SDK's errors are made of: theirs name no cause."""
    cause = error.__cause__ or error.__context__
    status = f"{getattr(cause, 'status', '')} {getattr(cause, 'reason', '')}".strip()
    return f"{error} ({status or cause})" if cause else str(error)


def _node(arguments):  # type: ignore[no-untyped-def]
    """What the local back end runs: it takes a function's source, and gives it a Python without packages."""
    import subprocess
    import sys

    sys.exit(subprocess.run(arguments["command"], cwd=arguments["folder"], check=False).returncode)


def _locally(command: Sequence[str], nodes: int, name: str) -> str:
    from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient
    from kubeflow.trainer.options import Name

    client, here = TrainerClient(LocalProcessBackendConfig()), Path.cwd()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = [f"{name}-node-{rank}" for rank in range(nodes)]
    place = {"PET_NNODES": nodes, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    place |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    # It makes an environment with the first `python` it finds, which need not be one that can.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # It stops a job only when that says something: nodes watch a process instead, which ends with this one or before.
    life = subprocess.Popen(["sleep", "infinity"], preexec_fn=die_with_parent)  # noqa: PLW1509
    try:
        for rank, node in enumerate(names):
            own = {**place, "PET_NODE_RANK": rank, "HARDCASE_LAUNCHER_PID": life.pid}
            environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
            runtime = client.get_runtime("torch-distributed")
            runtime.trainer.framework = "python"  # else it looks for a torchrun that was never installed
            arguments = {"command": list(command), "folder": str(here)}
            trainer = CustomTrainer(func=_node, func_args=arguments, env=environment)
            client.train(runtime, trainer=trainer, options=[Name(name=node)])
            client.wait_for_job_status(node, {"Running", *ENDED}, timeout=60, polling_interval=1)
            os.chdir(here)  # it goes elsewhere
        threading.Thread(target=lambda: list(client.get_job_logs(names[0], follow=True)), daemon=True).start()
        while True:
            states = {node: client.get_job(node).status for node in names}
            if broken := next((node for node, state in states.items() if state == "Failed"), ""):
                return "\n".join(
                    [f"{broken} failed; its last lines:", *list(client.get_job_logs(broken))[-LAST_LINES:]]
                )
            if set(states.values()) == {"Complete"}:
                return ""
            time.sleep(SECONDS_BETWEEN / 4)
    finally:
        life.kill()
        life.wait()
        for folder in Path(tempfile.gettempdir()).glob(f"{name}-node-*"):
            shutil.rmtree(folder, ignore_errors=True)
