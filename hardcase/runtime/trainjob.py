"""A TrainJob of Kubeflow Trainer: started through its SDK, followed, its first node's log printed, deleted.

Lines cited of the SDK are of kubeflow 0.5.0, trainer/backends/kubernetes/backend.py. The SDK passes on neither why a
job waits nor the times of log lines, so these are requested from the API by the SDK's own client.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final, TypeVar

from kubeflow.trainer import CustomTrainerContainer, TrainerClient
from kubeflow.trainer.options import Labels, Name, TrainerCommand
from kubernetes.client import ApiException
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from hardcase.errors import HardcaseError, InputError
from hardcase.runtime.nodes import LAST_LINES, NodeKind

# The variable that names the TrainingRuntime of a kind of nodes, and the name by default.
RUNTIMES: Final[Mapping[NodeKind, tuple[str, str]]] = {
    "training": ("HARDCASE_TRAINING_RUNTIME", "hardcase-train"),
    "ingest": ("HARDCASE_INGEST_RUNTIME", "hardcase-ingest"),
}
QUEUE: Final = {"kueue.x-k8s.io/queue-name": "gpu"}
NODE: Final = "node"  # the replicated job and its container
INDEX: Final = "batch.kubernetes.io/job-completion-index"
ENDED: Final = ("Complete", "Failed")
WITHOUT: Final = "docs/how-to/train-on-gpus.md says what the cluster needs, HARDCASE_TRAINER=local does without one"
SECONDS_BETWEEN = 2.0
SECONDS_AWAY = 300.0  # how long the cluster's API may be away, and pods of an earlier attempt may take to end
SECONDS_ANSWER: Final = 30.0
SECONDS_SILENT = 300.0  # between two log lines about a job that waits
T = TypeVar("T")
logger = logging.getLogger(__name__)


def run_trainjob(command: Sequence[str], nodes: int, processes: int, name: str, kind: NodeKind) -> str:
    """Run a command on each of several nodes of the cluster, as `hardcase.runtime.nodes.run_on_nodes` says."""
    variable, default = RUNTIMES[kind]
    wanted = os.environ.get(variable) or default
    try:
        client = TrainerClient()  # reads the kubeconfig; an API that is away is forgiven (SDK, :64)
    except Exception as error:
        raise InputError(f"nodes is {nodes}: no cluster is known: {error}; {WITHOUT}") from error
    _notice_dead_connections(client)
    runtime = _ask(f"TrainingRuntime {wanted}", lambda: _runtime(client, wanted, nodes), InputError)
    gpus = int(runtime.trainer.device_count) // runtime.trainer.num_nodes if runtime.trainer.device == "gpu" else 0
    if 0 < gpus < processes:
        raise InputError(f"runtime {wanted}: {gpus} GPUs a node for {processes} processes; set one to the other")
    image = os.environ.get("HARDCASE_IMAGE") or runtime.trainer.image
    options = [Name(name=name), TrainerCommand(command=list(command)), *([Labels(labels=QUEUE)] if gpus else [])]
    trainer = CustomTrainerContainer(image=image, num_nodes=nodes)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _delete(client, name)  # of a step that was killed
        _ask(f"TrainJob {name}", lambda: _create(client, runtime, trainer, options), InputError)
        logger.info("TrainJob %s: %d nodes of runtime %s", name, nodes, wanted)
        return _follow(client, name, nodes)
    finally:
        try:
            _delete(client, name)
        except HardcaseError:
            logger.exception("TrainJob %s is left", name)
        signal.signal(signal.SIGTERM, before)


def _notice_dead_connections(client: TrainerClient) -> None:
    """Let the kernel end a connection whose other end is gone: a log is read without a limit of time."""
    limits = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 60_000}
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    options += [(socket.IPPROTO_TCP, option, value) for option, value in limits.items()]
    pools = client.backend.core_api.api_client.rest_client.pool_manager  # of all its calls
    pools.connection_pool_kw["socket_options"] = [*HTTPConnection.default_socket_options, *options]


def _ask(what: str, call: Callable[[], T], refused: type[HardcaseError] = HardcaseError) -> T:
    """Call the cluster's API, repeatedly while it is away; a `HardcaseError` of `call` itself passes.

    `refused` is raised where the API does not authenticate or authorise us, or does not know the object.
    """
    until = time.monotonic() + SECONDS_AWAY
    while True:
        try:
            return call()
        except HardcaseError:
            raise
        except Exception as error:
            status, message = _status(error), f"{what}: {_reason(error)}"
            away = isinstance(error, TimeoutError) or isinstance(_cause(error), HTTPError | OSError)
            if status in (401, 403, 404):
                raise refused(f"{message}; {WITHOUT}") from error
            if not (away or status == 429 or status >= 500) or time.monotonic() > until:
                raise HardcaseError(message) from error
            logger.warning("%s; asking again", message)
            time.sleep(SECONDS_BETWEEN)


def _cause(error: Exception) -> BaseException:
    """Return the error of the API or of the connection, where the SDK's own error wraps it."""
    return error.__cause__ or error


def _status(error: Exception) -> int:
    return getattr(_cause(error), "status", None) or 0


def _reason(error: Exception) -> str:
    cause = _cause(error)
    answer = f"{_status(error)} {getattr(cause, 'reason', '')}" if _status(error) else str(cause)
    return answer if cause is error else f"{error} ({answer})"


def _runtime(client: TrainerClient, wanted: str, nodes: int) -> Any:
    try:
        return client.get_runtime(wanted)
    except RuntimeError as error:
        # Where the namespace has none, it asks for one of the whole cluster, which our role does not allow (:209).
        if _status(error) == 404 or "checked both" in str(error):
            raise InputError(
                f"nodes is {nodes}: namespace {client.backend.namespace} has no TrainingRuntime {wanted}, so it has "
                f"no nodes for this: set `nodes` to 1 and shards to the GPUs of one node, or apply it; {WITHOUT}"
            ) from error
        raise


def _create(client: TrainerClient, runtime: Any, trainer: Any, options: list[Any]) -> None:
    try:
        client.train(runtime, trainer=trainer, options=options)
    except RuntimeError as error:
        if _status(error) != 409:  # ours: an answer was lost on its way
            raise


def _delete(client: TrainerClient, name: str) -> None:
    """Delete a job, and wait until its pods are gone: until they end, they write into the step's folder."""
    until = time.monotonic() + SECONDS_AWAY
    while left := _ask(f"TrainJob {name}", lambda: _left(client, name)):
        if time.monotonic() > until:
            raise HardcaseError(
                f"TrainJob {name}: {', '.join(left)} of an earlier attempt does not end, and would write into the "
                "same folder; if its node is lost, delete that node or `kubectl delete pod --force`, and run again"
            )
        time.sleep(SECONDS_BETWEEN / 2)


def _left(client: TrainerClient, name: str) -> list[str]:
    """Delete a job and return which of its parts remain. In the foreground Trainer would create the job again."""
    jobs = [name]
    try:
        client.delete_job(name)
    except RuntimeError as error:
        if _status(error) != 404:
            raise
        jobs = []
    return jobs + [pod.metadata.name for pod in _pods(client, name)]


def _pods(client: TrainerClient, name: str) -> list[Any]:
    label = f"jobset.sigs.k8s.io/jobset-name={name}"
    core, namespace = client.backend.core_api, client.backend.namespace
    pods: list[Any] = core.list_namespaced_pod(namespace, label_selector=label, _request_timeout=SECONDS_ANSWER).items
    return pods


def _look(client: TrainerClient, name: str) -> tuple[dict[str, Any], dict[str, str], dict[int, Any]]:
    """Return a job, the messages of its conditions that are true, and the newest pod of each node."""
    jobs = ("trainer.kubeflow.org", "v1alpha1", client.backend.namespace, "trainjobs")
    try:
        job = client.backend.custom_api.get_namespaced_custom_object(*jobs, name, _request_timeout=SECONDS_ANSWER)
    except Exception as error:
        if _status(error) == 404:
            raise HardcaseError(f"TrainJob {name}: deleted while it was at work; run again to go on") from error
        raise
    pods = sorted(_pods(client, name), key=lambda pod: pod.metadata.creation_timestamp)
    pods = [pod for pod in pods if pod.metadata.labels["jobset.sigs.k8s.io/replicatedjob-name"] == NODE]
    return job, _messages(job, "True"), {int(pod.metadata.labels[INDEX]): pod for pod in pods}


def _messages(resource: dict[str, Any], status: str) -> dict[str, str]:
    conditions = resource.get("status", {}).get("conditions", [])
    return {entry["type"]: entry.get("message", "") for entry in conditions if entry["status"] == status}


def _follow(client: TrainerClient, name: str, nodes: int) -> str:
    pod, shown, waits, logged = "", "", "", 0.0
    while True:
        job, conditions, pods = _ask(f"TrainJob {name}", lambda: _look(client, name))
        ended = next((condition for condition in ENDED if condition in conditions), "")
        if not ended and (reason := _waiting(client, job, conditions, pods, nodes)):
            if reason != waits or time.monotonic() > logged + SECONDS_SILENT:
                logger.info("TrainJob %s waits: %s", name, reason)
                waits, logged = reason, time.monotonic()
        elif 0 in pods:
            first = pods[0].metadata.name
            shown, pod = _show(client, first, shown if first == pod else "", bool(ended)), first
        if ended == "Failed":
            return _last_words(client, name, conditions[ended], pods)
        if ended:
            return ""
        time.sleep(SECONDS_BETWEEN)


def _waiting(
    client: TrainerClient, job: dict[str, Any], conditions: dict[str, str], pods: dict[int, Any], nodes: int
) -> str:
    """Return why not all nodes are at work; empty if they are."""
    if "Suspended" in conditions:  # by Kueue, until it admits the job and when another takes its place
        return f"queued by Kueue{_of_queue(client, job['metadata']['uid'])}"
    if len(pods) < nodes:
        return f"{len(pods)} of {nodes} pods are made"
    pending = [pod for pod in pods.values() if pod.status.phase == "Pending"]
    reason = next(filter(None, map(_of_pod, pending)), "")
    return f"{len(pending)} of {nodes} pods are pending{reason}" if pending else ""


def _of_queue(client: TrainerClient, uid: str) -> str:
    label = f"kueue.x-k8s.io/job-uid={uid}"  # kueue v0.19.2, pkg/controller/constants/constants.go:43
    workloads = ("kueue.x-k8s.io", "v1beta2", client.backend.namespace, "workloads")
    with suppress(HTTPError, ApiException):  # a role may not read them
        listed = client.backend.custom_api.list_namespaced_custom_object(
            *workloads, label_selector=label, _request_timeout=SECONDS_ANSWER
        )
        messages = [_messages(workload, "False").get("QuotaReserved", "") for workload in listed["items"]]
        return next((f": {message}" for message in messages if message), "")
    return ""


def _of_pod(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f": {condition.message}"
    for container in pod.status.container_statuses or []:
        if (waits := container.state.waiting) and waits.message:  # an image that cannot be pulled, say
            return f": {waits.reason}: {waits.message}"
    return ""


def _show(client: TrainerClient, pod: str, after: str, ended: bool) -> str:
    """Print the lines of a pod's log after a time, as they come, and return the time of the last line printed.

    Lines are identified by their times, since the head of a long log is cut. If the pod has `ended`, a last line
    without a line break is complete.
    """
    core, namespace = client.backend.core_api, client.backend.namespace
    # Its log cannot be read yet, or the connection broke.
    with suppress(HTTPError, ApiException):
        log = core.read_namespaced_pod_log(
            pod, namespace, container=NODE, follow=True, timestamps=True, _preload_content=False
        )
        with closing(log):
            for line in log:
                at, _, text = line.decode(errors="replace").partition(" ")
                if at > after and (ended or text.endswith("\n")):
                    sys.stdout.write(f"{text.rstrip()}\n")
                    sys.stdout.flush()
                    after = at
    return after


def _last_words(client: TrainerClient, name: str, message: str, pods: dict[int, Any]) -> str:
    core, namespace, lines = client.backend.core_api, client.backend.namespace, list[str]()
    for number, pod in pods.items():
        if pod.status.phase == "Failed":
            with suppress(HTTPError, ApiException):
                log = core.read_namespaced_pod_log(
                    pod.metadata.name, namespace, container=NODE, tail_lines=LAST_LINES, _request_timeout=SECONDS_ANSWER
                )
                lines += [f"node-{number} failed{_end_of(pod)}; its last lines:", *log.splitlines()]
    gone = "its pods are gone: a node was lost (drained, taken back, out of memory), or someone deleted them"
    return "\n".join([f"TrainJob {name} failed{': ' if message else ''}{message}", *(lines or [gone])])


def _end_of(pod: Any) -> str:
    ends = [end for status in pod.status.container_statuses or [] if (end := status.state.terminated)]
    reasons = [pod.status.reason, *(f"{end.reason}, exit code {end.exit_code}" for end in ends)]
    return next((f" ({reason})" for reason in reasons if reason), "")
