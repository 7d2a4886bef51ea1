"""The pipelines as a cluster runs them: few parameters, each with a default, and what Kubernetes is asked for.

Names of accounts, secrets, volumes and labels are those of `infra/kubernetes/` (docs/how-to/install-on-kubernetes.md,
"What steps ask for"); a test compares the two. A pod costs ten seconds, and the workflow keeps several copies of what a
step asks for: one layer, few artifacts and parameters (docs/decisions/0010).
"""

from collections.abc import Mapping
from typing import Any, Final

from kfp import dsl, kubernetes

from components.answer import answer as answer_step
from components.conclude import conclude as conclude_step
from components.configure import configure as configure_step
from components.drift import drift as drift_step
from components.evaluate import evaluate as evaluate_step
from components.fetch import fetch as fetch_step
from components.ingest import ingest as ingest_step
from components.record import record as record_step
from hardcase.config import PROFILES
from pipelines.retraining import STEPS, graph

PROFILE_NAMES: Final = sorted(path.stem for path in PROFILES.glob("*.yaml"))
ETC: Final = "/etc/hardcase"  # hardcase.runtime.running.load_environment reads the variables that are mounted there
CACHE: Final = "/cache"  # of what is fetched: objects, checkpoints, compiled kernels; gone with the pod
CACHE_SIZE: Final = "32Gi"  # more than $HARDCASE_CACHE_GB and a checkpoint of InternVL3-2B
USER: Final = 10001  # of the images
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
# Longest a step may take, in seconds: training InternVL3-2B on one node takes hours (docs/how-to/train-on-gpus.md).
TIMEOUTS: Final = {"sft": 24 * HOUR, "grpo": 48 * HOUR, "rollout": 12 * HOUR, "answer": 12 * HOUR}
WITH_MODEL: Final = tuple(TIMEOUTS)
RETRIES: Final = 3
# Seconds before the first retry, doubled for each one after. Argo waits for them before it asks whether to retry at all
# (argo-workflows v4.0.5, workflow/controller/operator.go:1026), also where the input was refused.
BACKOFF: Final = 20
EVALUATION: Final = ("fetch", "ingest", "answer", "evaluate", "drift", "record")


def _settle(step: str, task: dsl.PipelineTask, plan: Mapping[str, Any], priority: str = "training") -> None:
    """Ask for what a step's pod needs."""
    timeout = TIMEOUTS.get(step, HOUR)
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
    if step != "conclude":
        # Argo counts this window from the start of the first attempt, and kills what runs when it ends (there too).
        window = timeout * (RETRIES + 1) + BACKOFF * (2**RETRIES - 1) + HOUR
        task.set_retry(
            num_retries=RETRIES,
            backoff_duration=f"{BACKOFF}s",
            backoff_factor=2,
            backoff_max_duration=f"{window}s",
        )
    if step not in WITH_MODEL:
        task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1G").set_memory_limit("8G")
        return
    cpus, memory, gpus, nodes = (plan[f"{step}_{what}"] for what in ("cpus", "memory", "gpus", "nodes"))
    task.set_cpu_request(cpus).set_cpu_limit(cpus).set_memory_request(memory).set_memory_limit(memory)
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    kubernetes.add_node_selector_json(task, nodes)
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="16Gi")  # noqa: S108
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", "gpu")
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", priority)
    kubernetes.add_pod_annotation(task, "karpenter.sh/do-not-disrupt", "true")


def _conclude(profile: str, source: str, seed: int, steps: tuple[str, ...]) -> dsl.PipelineTask:
    """Compose the exit handler, and ask for what it needs besides."""
    task = conclude_step(profile=profile, source=source, seed=seed, steps=list(steps))
    _settle("conclude", task, {})
    task.set_caching_options(False)
    kubernetes.use_secret_as_volume(task, "hardcase-notify", f"{ETC}/notify", optional=True)
    return task


@dsl.pipeline(name="hardcase-retraining")
def retraining_on_cluster(
    profile: str = "tiny",
    source: str = "",
    seed: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Retrain the model that screens generated images.

    Args:
        profile: How to retrain: tiny and smoke learn drawn scenes without a GPU, internvl3-2b trains the real model.
        source: Where the samples are: s3://bucket/prefix, snapshot:ID or procedural://…; empty for the profile's own.
        seed: Of everything that is drawn.
        settings: Keys of the profile to change, such as {"sft.steps": 500}.
    """
    with dsl.ExitHandler(_conclude(profile, source, seed, ("configure", *STEPS)), name="run"):
        plan = configure_step(profile=profile, source=source, seed=seed, settings=settings)
        tasks = {"configure": plan, **graph(plan.outputs)}
    for step, task in tasks.items():
        _settle(step, task, plan.outputs)
    plan.set_caching_options(False)  # the champion of today is no input of it
    tasks["register"].set_caching_options(False)  # its record is how a run is known to have succeeded


@dsl.pipeline(name="hardcase-evaluation")
def evaluation_on_cluster(
    model: str = "image-screener@champion",
    source: str = "procedural://?samples=200&seed=11",
    profile: str = "tiny",
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Score a registered version on other data.

    Args:
        model: NAME@champion, NAME@challenger or NAME:VERSION.
        source: Samples with answers: s3://bucket/prefix, snapshot:ID or procedural://…
        profile: How to answer, and on which machines.
        settings: Keys of the profile to change, such as {"evaluate.batch_size": 32}.
    """
    with dsl.ExitHandler(_conclude(profile, source, 0, EVALUATION), name="run"):
        plan = fetch_step(model=model, source=source, profile=profile, settings=settings)
        place, seed = plan.outputs["place"], plan.outputs["seed"]
        snapshot = ingest_step(
            source=plan.outputs["source"],
            source_digest=plan.outputs["source_digest"],
            config=plan.outputs["ingest"],
            place=place,
        )
        answers = answer_step(
            snapshot=snapshot.output,
            model=plan.outputs["model"],
            seed=seed,
            shards=plan.outputs["answer_shards"],
            gpus=plan.outputs["answer_gpus"],
            config=plan.outputs["evaluate"],
            place=place,
        )
        judged = evaluate_step(answers=answers.output, seed=seed, config=plan.outputs["evaluate"], place=place)
        evaluation = judged.outputs["Output"]
        compared = drift_step(
            evaluation=evaluation, reference=plan.outputs["reference"], config=plan.outputs["drift"], place=place
        )
        recorded = record_step(
            evaluation=evaluation,
            drift=compared.output,
            launch=plan.outputs["launch"],
            source=plan.outputs["source"],
            place=place,
        )
    tasks = (plan, snapshot, answers, judged, compared, recorded)
    for step, task in zip(EVALUATION, tasks, strict=True):
        _settle(step, task, plan.outputs, priority="backfill")
    plan.set_caching_options(False)  # an alias moves
    recorded.set_caching_options(False)  # each run is a record of its own


def _explain(pipeline: Any) -> None:
    """Let a pipeline's description say what its parameters mean: Kubeflow's form shows no other text of ours."""
    spec = pipeline.pipeline_spec
    parameters = spec.root.input_definitions.parameters
    lines = [f"- **{name}**: {about.description}" for name, about in sorted(parameters.items())]  # shown as Markdown
    spec.pipeline_info.description = "\n".join([spec.pipeline_info.description, "", *lines])


def _offer(pipeline: Any, parameter: str, choices: list[str]) -> None:
    """Let Kubeflow's form offer choices for a parameter, which its server then checks; the SDK has no word for it."""
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters[parameter]
    for choice in choices:
        inputs.literals.add().string_value = choice


for _pipeline in (retraining_on_cluster, evaluation_on_cluster):
    _explain(_pipeline)
    _offer(_pipeline, "profile", PROFILE_NAMES)
