"""The pipelines as a cluster runs them: few parameters, each with a default, and what Kubernetes is asked for.

Names of accounts, secrets, volumes and labels are those of `infra/kubernetes/` (docs/kubernetes.md, "What steps ask
for"); a test holds the two together.
"""

from collections.abc import Mapping
from inspect import Parameter, Signature, signature
from typing import Any, Final

from kfp import dsl, kubernetes

from components.answer.component import answer as answer_step
from components.configure.component import configure as configure_step
from components.configure.component import fetch as fetch_step
from components.drift.component import drift as drift_step
from components.evaluate.component import score as score_step
from components.ingest.component import ingest as ingest_step
from components.record.component import record as record_step
from components.report.component import conclude as conclude_step
from hardcase.config import PROFILES
from pipelines.retraining import graph, retraining

PROFILE_NAMES: Final = sorted(path.stem for path in PROFILES.glob("*.yaml"))
# Keys of the ConfigMap `hardcase-environment`, each a variable; those that are not there are not set.
ENVIRONMENT: Final = (
    "AWS_REGION",
    "DO_NOT_TRACK",
    "HARDCASE_CACHE",
    "HARDCASE_MAIL_FROM",
    "HARDCASE_MAIL_TO",
    "HARDCASE_SCRATCH",
    "HARDCASE_SIGNING_KEY",
    "HARDCASE_SMTP_HOST",
    "HARDCASE_SMTP_PORT",
    "HARDCASE_SMTP_USER",
    "HARDCASE_STORE",
    "HARDCASE_TRAINING_RUNTIME",
    "HARDCASE_TRUSTED_KEYS",
    "HARDCASE_UI",
    "HF_HOME",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_TRACKING_URI",
    "OPENLINEAGE_URL",
)
CACHE: Final = "/cache"  # of what is fetched: shards, checkpoints; gone with the pod
USER: Final = 10001  # of the images
HOUR: Final = 3600
# Longest a step may take, in seconds: a training of InternVL3-2B on one node is a matter of hours (docs/gpu.md).
TIMEOUTS: Final = {"sft": 24 * HOUR, "grpo": 48 * HOUR, "rollout": 12 * HOUR, "answer": 12 * HOUR}
GPU_STEPS: Final = {"sft": "train", "grpo": "train", "rollout": "shard", "answer": "shard", "answer_sft": "shard"}


def _settle(step: str, task: dsl.PipelineTask, plan: Mapping[str, Any], priority: str = "training") -> None:
    """Ask for what a step's pod needs."""
    kubernetes.set_timeout(task, TIMEOUTS.get(step.partition("_")[0], HOUR))
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_config_map_as_env(task, "hardcase-environment", {name: name for name in ENVIRONMENT}, optional=True)
    kubernetes.use_config_map_as_volume(task, "hardcase-trusted-keys", "/etc/hardcase/trusted-keys", optional=True)
    kubernetes.use_secret_as_volume(task, "hardcase-signing", "/var/run/secrets/hardcase", optional=True)
    kubernetes.use_secret_as_env(
        task, "hardcase-lineage", {"OPENLINEAGE_API_KEY": "OPENLINEAGE_API_KEY"}, optional=True
    )
    kubernetes.use_field_path_as_env(task, "HARDCASE_RUN", "metadata.labels['pipeline/runid']")
    # Checkpoints outlive a lost pod there (docs/decisions/0009).
    kubernetes.mount_pvc(task, pvc_name="hardcase-scratch", mount_path="/scratch")
    kubernetes.add_ephemeral_volume(task, "cache", CACHE, access_modes=["ReadWriteOnce"], size="200Gi")
    if step != "conclude":
        task.set_retry(num_retries=3, backoff_duration="60s", backoff_factor=2, backoff_max_duration="900s")
    if (kind := GPU_STEPS.get(step)) is None:
        task.set_cpu_request("1").set_cpu_limit("4").set_memory_request("2G").set_memory_limit("8G")
        return
    cpus, memory, gpus = (plan[f"{kind}_{what}"] for what in ("cpus", "memory", "gpus"))
    task.register_pipeline_channels([cpus, memory, gpus])  # else the compiler forgets them inside of loops
    task.set_cpu_request(cpus).set_cpu_limit(cpus).set_memory_request(memory).set_memory_limit(memory)
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    kubernetes.add_node_selector_json(task, plan["nodes"])
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="16Gi")  # noqa: S108
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", "gpu")
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", priority)
    kubernetes.add_pod_annotation(task, "karpenter.sh/do-not-disrupt", "true")


def _conclude(task: dsl.PipelineTask) -> None:
    """What the exit handler needs besides."""
    _settle("conclude", task, {})
    task.set_caching_options(False)
    notify = {name: name for name in ("HARDCASE_WEBHOOK", "HARDCASE_SMTP_PASSWORD")}
    kubernetes.use_secret_as_env(task, "hardcase-notify", notify, optional=True)


def _steps(*values: Any) -> None:
    plan = dict(zip(PARAMETERS, values, strict=True))
    for step, task in graph(plan).items():
        _settle(step, task, plan)


# One signature, that of `retraining` and what pods ask for: what `configure` finds goes in whole.
MACHINES: Final = {
    "nodes": dict,
    "train_gpus": int,
    "train_cpus": str,
    "train_memory": str,
    "shard_gpus": int,
    "shard_cpus": str,
    "shard_memory": str,
}
PARAMETERS: Final = {
    name: parameter.replace(default=Parameter.empty)
    for name, parameter in signature(retraining.pipeline_func).parameters.items()
} | {name: Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in MACHINES.items()}
_steps.__signature__ = Signature(list(PARAMETERS.values()))  # type: ignore[attr-defined]
steps = dsl.pipeline(name="steps", description=retraining.description)(_steps)


@dsl.pipeline(name="hardcase-retraining", description="Retrain the model that screens generated images.")
def retraining_on_cluster(
    profile: str = "tiny",
    source: str = "",
    seed: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Retrain with one click.

    Args:
        profile: How to retrain: tiny and smoke learn drawn scenes without a GPU, internvl3-2b trains the real model.
        source: Where the samples are: s3://bucket/prefix, snapshot:ID or procedural://…; empty for the profile's own.
        seed: Of everything that is drawn.
        settings: Keys of the profile to change, such as {"sft.steps": 500}.
    """
    ended = conclude_step(profile=profile, source=source, seed=seed)
    with dsl.ExitHandler(ended, name="run"):
        plan = configure_step(profile=profile, source=source, seed=seed, settings=settings)
        steps(**plan.outputs)
    _settle("configure", plan, {})
    _conclude(ended)
    plan.set_caching_options(False)  # the champion of today is no input of it


@dsl.pipeline(name="score")
def score(
    model: dsl.Input[dsl.Model],
    version: str,
    reference: str,
    source: str,
    source_digest: str,
    store: str,
    tracking_uri: str,
    scratch: str,
    code: str,
    seed: int,
    answer_shards: list[str],
    ingest: dict[str, Any],
    evaluate: dict[str, Any],
    drift: dict[str, Any],
    nodes: dict[str, Any],
    shard_gpus: int,
    shard_cpus: str,
    shard_memory: str,
) -> None:
    """Score a model on a source of samples; the parameters are what `fetch` finds."""
    plan = dict(locals())
    place = {"store": store, "scratch": scratch, "code": code}
    read = ingest_step(source=source, source_digest=source_digest, config=ingest, **place)
    snapshot = read.outputs["snapshot"]
    with dsl.ParallelFor(answer_shards, name="answers") as shard:
        answered = answer_step(
            snapshot=snapshot, model=model, role="final", seed=seed, shard=shard, config=evaluate, **place
        )
    answers = dsl.Collected(answered.outputs["answers"])
    judged = score_step(snapshot=snapshot, answers=answers, seed=seed, config=evaluate, **place)
    evaluation = judged.outputs["evaluation"]
    compared = drift_step(evaluation=evaluation, reference=reference, config=drift, **place)
    told = record_step(
        snapshot=snapshot,
        evaluation=evaluation,
        scores=judged.outputs["scores"],
        drift=compared.outputs["result"],
        version=version,
        source=source,
        tracking_uri=tracking_uri,
        **place,
    )
    told.set_caching_options(False)  # each run is a record of its own
    tasks = {"ingest": read, "answer": answered, "evaluate": judged, "drift": compared, "record": told}
    for step, task in tasks.items():
        _settle(step, task, plan, priority="backfill")


@dsl.pipeline(name="hardcase-evaluation", description="Score a registered version on other data.")
def evaluation_on_cluster(
    model: str = "image-screener@champion",
    source: str = "procedural://?samples=200&seed=11",
    profile: str = "tiny",
    settings: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Score a registered version again.

    Args:
        model: NAME@champion, NAME@challenger or NAME:VERSION.
        source: Samples with answers: s3://bucket/prefix, snapshot:ID or procedural://…
        profile: How to answer, and on which machines.
        settings: Keys of the profile to change, such as {"evaluate.batch_size": 32}.
    """
    ended = conclude_step(profile=profile, source=source, seed=0)
    with dsl.ExitHandler(ended, name="run"):
        plan = fetch_step(model=model, source=source, profile=profile, settings=settings)
        score(model=plan.outputs["fetched"], **{name: plan.outputs[name] for name in plan.outputs if name != "fetched"})
    _settle("fetch", plan, {})
    _conclude(ended)
    plan.set_caching_options(False)  # an alias moves


def _offer(pipeline: Any, parameter: str, choices: list[str]) -> None:
    """Let Kubeflow's form offer choices for a parameter, which its server then checks; the SDK has no word for it."""
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters[parameter]
    for choice in choices:
        inputs.literals.add().string_value = choice


_offer(retraining_on_cluster, "profile", PROFILE_NAMES)
_offer(evaluation_on_cluster, "profile", PROFILE_NAMES)
