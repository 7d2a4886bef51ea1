"""The committed YAML is what Kubeflow gets: the pipeline of the source, which asks Kubernetes for what it needs."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler import Compiler
from kfp.components import load_component_from_text

from components.configure.step import PER_GPU, machines
from hardcase.config import PROFILES, load_profile
from pipelines import kubeflow
from pipelines.cluster import ENVIRONMENT, GPU_STEPS, PROFILE_NAMES, USER
from pipelines.retraining import STEPS

KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes" / "base"


def spec_of(name: str) -> tuple[Any, Any]:
    """The pipeline, and its Kubernetes part by step."""
    text = (kubeflow.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    spec, platform = yaml.safe_load_all(text)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec, {executor.removeprefix("exec-"): settings for executor, settings in executors.items()}


def manifests() -> dict[tuple[str, str], Any]:
    found = [each for path in KUBERNETES.rglob("*.yaml") for each in yaml.safe_load_all(path.read_text()) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found if "metadata" in each}


def tasks_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """All tasks of all levels by name."""
    graphs = [spec["root"], *spec["components"].values()]
    return {name: task for each in graphs if "dag" in each for name, task in each["dag"]["tasks"].items()}


def test_committed_yaml_is_what_the_source_compiles_to() -> None:
    kubeflow.check()


@pytest.mark.parametrize("name", kubeflow.PIPELINES)
def test_committed_yaml_survives_compilation_by_kfp_unchanged(name: str, tmp_path: Path) -> None:
    text = (kubeflow.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    Compiler().compile(load_component_from_text(text), str(tmp_path / "again.yaml"))
    assert list(yaml.safe_load_all((tmp_path / "again.yaml").read_text())) == list(yaml.safe_load_all(text))


def test_one_click_is_enough_and_the_form_offers_the_profiles() -> None:
    spec, _ = spec_of("retraining")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"profile", "source", "seed", "settings"}
    for name, about in parameters.items():
        assert about["isOptional"] and "defaultValue" in about and about["description"], name
    assert parameters["profile"]["literals"] == PROFILE_NAMES == sorted(path.stem for path in PROFILES.glob("*.yaml"))
    assert parameters["profile"]["defaultValue"] in PROFILE_NAMES


def test_every_step_is_there_and_validation_gates_training() -> None:
    spec, kubernetes = spec_of("retraining")
    tasks = tasks_of(spec)
    assert {*STEPS, "configure", "conclude"} <= set(tasks)
    assert "validate" in tasks["sft"]["dependentTasks"]
    assert set(kubernetes) == {*STEPS, "answer-2", "configure", "conclude"}
    for loop, step in (("for-loop-1", "rollout"), ("for-loop-2", "answer")):
        assert "parameterIterator" in tasks[loop]
        assert step in spec["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]


def test_the_exit_handler_comes_after_all_however_it_ends() -> None:
    spec, kubernetes = spec_of("retraining")
    tasks = spec["root"]["dag"]["tasks"]
    handler = tasks["conclude"]
    assert handler["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert set(tasks) - {"conclude"} == set(handler["dependentTasks"])
    assert not handler["cachingOptions"].get("enableCache")
    (secret,) = [each for each in kubernetes["conclude"]["secretAsEnv"] if each["secretName"] == "hardcase-notify"]
    assert secret["optional"]
    assert {key["envVar"] for key in secret["keyToEnv"]} == {"HARDCASE_WEBHOOK", "HARDCASE_SMTP_PASSWORD"}


def test_every_step_has_what_it_needs_by_the_names_of_the_manifests() -> None:
    spec, kubernetes = spec_of("retraining")
    there, tasks = manifests(), tasks_of(spec)
    for step, settings in kubernetes.items():
        assert int(settings["activeDeadlineSeconds"]) >= 3600, step
        assert settings["securityContext"] == {"runAsUser": str(USER), "runAsGroup": str(USER), "runAsNonRoot": True}
        assert {"fieldPath": "metadata.labels['pipeline/runid']", "name": "HARDCASE_RUN"} in settings["fieldPathAsEnv"]
        names = [("ConfigMap", each["configMapName"]) for each in settings["configMapAsEnv"]]
        names += [("ConfigMap", each["configMapName"]) for each in settings["configMapAsVolume"]]
        names += [("ExternalSecret", each["secretName"]) for each in settings["secretAsEnv"]]
        names += [("PersistentVolumeClaim", each["constant"]) for each in settings["pvcMount"]]
        assert set(names) <= set(there), step
        (volume,) = settings["genericEphemeralVolume"]
        assert volume["size"] == "200Gi" and volume["defaultStorageClass"]
        (signing,) = settings["secretAsVolume"]
        assert (signing["secretName"], signing["optional"]) == ("hardcase-signing", True)
        retry = tasks[step].get("retryPolicy", {})
        assert retry.get("maxRetryCount") == (None if step == "conclude" else 3), step
        if retry:
            assert (retry["backoffDuration"], retry["backoffFactor"]) == ("60s", 2)
        assert bool(tasks[step]["cachingOptions"].get("enableCache")) == (step not in ("configure", "conclude"))
    assert set(there["ConfigMap", "hardcase-environment"]["data"]) <= set(ENVIRONMENT)


def test_steps_with_a_model_ask_for_gpus_as_the_profile_says_and_the_others_for_none() -> None:
    spec, kubernetes = spec_of("retraining")
    there, resources = manifests(), spec["deploymentSpec"]["executors"]
    kinds = {**GPU_STEPS, "answer-2": "shard"}
    kinds.pop("answer_sft")
    queue = there["LocalQueue", "gpu"]["metadata"]["name"]
    priorities = {name for kind, name in there if kind == "WorkloadPriorityClass"}
    for step, settings in kubernetes.items():
        asked = resources[f"exec-{step}"]["container"]["resources"]
        if step not in kinds:
            assert "accelerator" not in asked and "nodeSelector" not in settings, step
            assert asked["memoryLimit"] and asked["cpuLimit"], "else the namespace's default of 1 GiB holds"
            continue
        assert asked["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert f"{kinds[step]}_gpus" in asked["accelerator"]["resourceCount"]
        assert f"{kinds[step]}_memory" in asked["resourceMemoryLimit"]
        assert settings["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"].endswith("nodes")
        assert settings["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert settings["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert settings["emptyDirMounts"][0]["medium"] == "Memory"
        labels = settings["podMetadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == queue
        assert labels["kueue.x-k8s.io/priority-class"] in priorities
        assert settings["podMetadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}


@pytest.mark.parametrize(("profile", "gpus", "label"), [("internvl3-2b", 8, "80gb"), ("internvl3-2b-lora", 8, "24gb")])
def test_a_profile_for_gpus_gets_them_all_for_training_and_one_a_shard(profile: str, gpus: int, label: str) -> None:
    found = machines(load_profile(profile))
    assert (found["train_gpus"], found["shard_gpus"]) == (gpus, 1)
    assert found["nodes"] == {"hardcase.io/gpu-memory": label}
    cpus, memory = PER_GPU[label]  # type: ignore[index]
    assert (found["train_cpus"], found["train_memory"]) == (str(gpus * cpus), f"{gpus * memory}Gi")
    assert found["rollout_shards"][0] == "1/8" and len(found["rollout_shards"]) == 8


def test_a_profile_without_gpus_asks_for_none() -> None:
    found = machines(load_profile("tiny"))
    assert (found["train_gpus"], found["shard_gpus"]) == (0, 0)
    pools = [each for (kind, _), each in manifests().items() if kind == "NodePool"]
    labels = [pool["spec"]["template"].get("metadata", {}).get("labels", {}) for pool in pools]
    assert any(found["nodes"].items() <= each.items() for each in labels)


@pytest.mark.parametrize("step", ["configure", "ingest", "validate", "mine", "evaluate", "drift", "register", "report"])
def test_light_step_starts_without_torch(step: str) -> None:
    code = (
        f"import sys, components.{step}.step, components.running, components.report.conclusion; "
        "sys.exit(', '.join({'torch', 'transformers', 'trl', 'kfp'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
