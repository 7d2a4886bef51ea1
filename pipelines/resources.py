"""Requests of the steps' pods to Kubernetes.

Names of accounts, secrets, volumes and labels are those of `infra/kubernetes/` (docs/how-to/install-on-kubernetes.md,
"What steps ask for"); a test keeps the two equal. Kubeflow stores whatever a step requests several times in the
workflow, so steps request little (docs/decisions/0010).
"""

from collections.abc import Mapping
from typing import Any, Final

from kfp import dsl, kubernetes

ETC: Final = "/etc/hardcase"  # hardcase.runtime.running.load_environment reads the variables that are mounted there
CACHE: Final = "/cache"  # of what is fetched: objects, checkpoints, compiled kernels; gone with the pod
CACHE_SIZE: Final = "32Gi"  # more than $HARDCASE_CACHE_GB and a checkpoint of InternVL3-2B
USER: Final = 10001  # of the images
HOUR: Final = 3600  # seconds
RETRIES: Final = 3
# Seconds before the first retry, doubled for each one after. Argo waits for them before it asks whether to retry at all
# (argo-workflows v4.0.5, workflow/controller/operator.go:1026), also where the input was refused.
BACKOFF: Final = 20


def request_cpus(task: dsl.PipelineTask, cached: bool = True, timeout: int = HOUR) -> dsl.PipelineTask:
    """Request a light step's pod, retried when it fails.

    `cached` tells whether the cache may serve its result. The timeout of an attempt is in seconds.
    """
    _request_surroundings(task, timeout)
    _retry(task, timeout)
    task.set_caching_options(cached)
    return _request_light(task)


def request_first(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Request the pod of the first step, which checks whom to notify; the cache never serves it, as models move."""
    return _request_notify(request_cpus(task, cached=False))


def request_handler(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Request the exit handler's pod, which also reads whom to notify."""
    _request_surroundings(task, HOUR)
    task.set_caching_options(False)
    return _request_light(_request_notify(task))


def _request_notify(task: dsl.PipelineTask) -> dsl.PipelineTask:
    return kubernetes.use_secret_as_volume(task, "hardcase-notify", f"{ETC}/notify", optional=True)


def request_gpus(
    task: dsl.PipelineTask, step: str, plan: Mapping[str, Any], timeout: int, priority: str = "training"
) -> dsl.PipelineTask:
    """Request the pod of a step with a model.

    `plan` holds the outputs of the planning step: `<step>_cpus`, `_memory`, `_gpus`, `_nodes`. The timeout of an
    attempt is in seconds: a training of InternVL3-2B on one node takes hours. `priority` is a class of Kueue.
    """
    _request_surroundings(task, timeout)
    _retry(task, timeout)
    cpus, memory, gpus, nodes = (plan[f"{step}_{what}"] for what in ("cpus", "memory", "gpus", "nodes"))
    task.set_cpu_request(cpus).set_cpu_limit(cpus).set_memory_request(memory).set_memory_limit(memory)
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    kubernetes.add_node_selector_json(task, nodes)
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="16Gi")  # noqa: S108
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", "gpu")
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", priority)
    kubernetes.add_pod_annotation(task, "karpenter.sh/do-not-disrupt", "true")
    return task


def _request_light(task: dsl.PipelineTask) -> dsl.PipelineTask:
    return task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1G").set_memory_limit("8G")


def _request_surroundings(task: dsl.PipelineTask, timeout: int) -> None:
    """Request what every pod needs: variables, keys, the run's id, volumes."""
    kubernetes.set_timeout(task, timeout)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_config_map_as_volume(task, "hardcase-environment", f"{ETC}/environment", optional=True)
    kubernetes.use_secret_as_volume(task, "hardcase-credentials", f"{ETC}/credentials", optional=True)
    kubernetes.use_config_map_as_volume(task, "hardcase-trusted-keys", f"{ETC}/trusted-keys", optional=True)
    kubernetes.use_secret_as_volume(task, "hardcase-signing", "/var/run/secrets/hardcase", optional=True)
    kubernetes.use_field_path_as_env(task, "HARDCASE_RUN", "metadata.labels['pipeline/runid']")
    # Checkpoints outlive a lost pod there (docs/decisions/0009).
    kubernetes.mount_pvc(task, pvc_name="hardcase-scratch", mount_path="/scratch")
    kubernetes.empty_dir_mount(task, "cache", CACHE, size_limit=CACHE_SIZE)


def _retry(task: dsl.PipelineTask, timeout: int) -> None:
    # Argo counts this window from the start of the first attempt, and kills what runs when it ends (there too).
    window = timeout * (RETRIES + 1) + BACKOFF * (2**RETRIES - 1) + HOUR
    task.set_retry(
        num_retries=RETRIES, backoff_duration=f"{BACKOFF}s", backoff_factor=2, backoff_max_duration=f"{window}s"
    )
