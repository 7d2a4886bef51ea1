"""Run a compiled pipeline by kfp.local as a cluster with our settings would, and tell of each step.

Arguments: folder, package, parameters as JSON. A line of JSON on `$EVENTS` tells the state of a step. What kfp.local
does otherwise than Kubeflow and Argo is done here: a lost pod is replaced, a refused input is not tried again
(infra/kubernetes/components/kubeflow), SIGTERM ends the step and then runs the exit handler, which gets the states of
tests/recordings/kubeflow/final-status.json. SIGUSR1 takes the pod of the step that is at work.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kfp import components, local
from kfp.local import status, subprocess_task_handler
from kfp.local.orchestrator import task_executor

ATTEMPTS = 4
REFUSED = 2
RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "kubeflow" / "final-status.json"
FINAL = json.loads(RECORDED.read_text(encoding="utf-8"))
folder, package, parameters = sys.argv[1:]
events = Path(os.environ["EVENTS"]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  as long as the run
execute = task_executor.execute_single_task


class Now:
    """What is going on: the step's process, how the last one ended, how many began, whether the run was stopped."""

    process: "subprocess.Popen[str] | None" = None
    ended = 0
    begun = 0
    stopped = False
    failed = False


def tell(step: str, state: str) -> None:
    events.write(json.dumps({"step": step, "state": state, "attempt": Now.begun}) + "\n")


def in_process(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """Run a step as kfp.local does, in a group of its own, so that it can be ended whole."""
    Now.begun += 1
    Now.process = subprocess.Popen(full_command, env={**os.environ, **(env_vars or {})}, start_new_session=True)
    Now.ended = Now.process.wait()
    Now.process = None
    return Now.ended


def end_step(number: signal.Signals) -> None:
    if Now.process is not None:
        os.killpg(Now.process.pid, number)


def stop(*_: Any) -> None:
    Now.stopped = True
    end_step(signal.SIGTERM)


def execute_as_cluster(task_name: str, task_spec: Any, io_store: Any, **more: Any) -> Any:
    closing = "task_final_status" in str(task_spec.inputs)
    outputs, ended = {}, status.Status.FAILURE
    if Now.stopped and not closing:
        return outputs, ended
    task_spec.retry_policy.max_retry_count = 0
    if closing:
        for given in task_spec.inputs.parameters.values():
            if given.HasField("task_final_status"):
                state = FINAL["terminated_by_api" if Now.stopped else "container_failed" if Now.failed else "success"][
                    "state"
                ]
                io_store.put_task_status(given.task_final_status.producer_task, state)
    tell(task_name, "RUNNING")
    Now.begun = 0
    for _ in range(ATTEMPTS):
        outputs, ended = execute(task_name=task_name, task_spec=task_spec, io_store=io_store, **more)
        if ended == status.Status.SUCCESS or Now.ended == REFUSED or (Now.stopped and not closing):
            break
    succeeded = ended == status.Status.SUCCESS
    Now.failed = Now.failed or not succeeded
    tell(task_name, ("SUCCEEDED" if Now.begun else "CACHED") if succeeded else "FAILED")
    return outputs, ended


task_executor.execute_single_task = execute_as_cluster
subprocess_task_handler.run_local_subprocess = in_process
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: end_step(signal.SIGKILL))
local.init(
    local.SubprocessRunner(use_venv=False),
    enable_caching=True,
    pipeline_root=f"{folder}/artifacts",
    cache_root=f"{folder}/cache",
)
components.load_component_from_file(package)(**json.loads(parameters))
