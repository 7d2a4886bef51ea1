"""The committed YAML is what Kubeflow gets: the pipeline of the source, which asks Kubernetes for what it needs."""

import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler import Compiler
from kfp.components import load_component_from_text

from hardcase.compiled import FOLDER, list_steps
from hardcase.config import PROFILES
from hardcase.runtime.running import MOUNTED
from hardcase.steps.configure import ON_GPUS, PER_GPU
from pipelines import compile as compiling
from pipelines.resources import CACHE_SIZE, USER
from tests.support.plans import machines

STEPS = list_steps("retraining")
PROFILE_NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))
KUBERNETES = Path(__file__).parents[3] / "infra" / "kubernetes" / "base"


def spec_of(name: str) -> tuple[Any, Any]:
    """The pipeline, and its Kubernetes part by step."""
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
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
    assert compiling.main(["--check"]) is None


@pytest.mark.parametrize("name", compiling.PIPELINES)
def test_committed_yaml_survives_compilation_by_kfp_unchanged(name: str, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    Compiler().compile(load_component_from_text(text), str(tmp_path / "again.yaml"))
    assert list(yaml.safe_load_all((tmp_path / "again.yaml").read_text())) == list(yaml.safe_load_all(text))


def test_one_click_is_enough_and_the_form_offers_the_profiles() -> None:
    spec, _ = spec_of("retraining")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"profile", "source", "seed", "settings"}
    for name, about in parameters.items():
        assert about["isOptional"] and "defaultValue" in about and about["description"], name
    assert parameters["profile"]["literals"] == PROFILE_NAMES
    assert parameters["profile"]["defaultValue"] in PROFILE_NAMES


def test_the_chain_lies_one_layer_below_the_root_and_validation_gates_training() -> None:
    spec, kubernetes = spec_of("retraining")
    assert set(spec["root"]["dag"]["tasks"]) == {"exit-handler-1", "conclude"}
    chain = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(chain) == set(STEPS)
    assert not any("dag" in spec["components"][task["componentRef"]["name"]] for task in chain.values())
    assert "validate" in chain["sft"]["dependentTasks"]
    assert set(kubernetes) == {*STEPS, "conclude"}


def test_the_chain_is_legible_in_the_ui() -> None:
    """At 1600 × 1000 Kubeflow's graph shows at most 11 ranks of legible labels (docs/decisions/0010)."""
    spec, _ = spec_of("retraining")
    chain = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    made = {name: list(spec["components"][f"comp-{name}"]["outputDefinitions"].get("artifacts", {})) for name in chain}
    assert not any(task["inputs"].get("artifacts") for task in chain.values()), (
        "an artifact between two steps is a rank"
    )
    ranks = dict[str, int]()
    for name in TopologicalSorter(
        {name: task.get("dependentTasks", []) for name, task in chain.items()}
    ).static_order():
        ranks[name] = 1 + max((ranks[before] for before in chain[name].get("dependentTasks", [])), default=0)
    assert max(rank + bool(made[name]) for name, rank in ranks.items()) <= 11
    assert {name: each for name, each in made.items() if each} == {"evaluate": ["confusion", "metrics"]}


@pytest.mark.parametrize("name", compiling.PIPELINES)
def test_the_exit_handler_comes_after_all_however_it_ends_and_knows_the_steps(name: str) -> None:
    spec, kubernetes = spec_of(name)
    tasks = spec["root"]["dag"]["tasks"]
    handler = tasks["conclude"]
    assert handler["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert set(tasks) - {"conclude"} == set(handler["dependentTasks"])
    assert handler["inputs"]["parameters"]["pipeline"]["runtimeValue"]["constant"] == name
    chain, steps = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"], list_steps(name)
    assert set(steps) == set(chain)
    assert not chain[steps[-1]]["cachingOptions"].get("enableCache"), (
        "its record is how a run is known to have succeeded"
    )
    told = {
        step: (secret["optional"], secret["mountPath"])
        for step, wanted in kubernetes.items()
        for secret in wanted.get("secretAsVolume", [])
        if secret["secretName"] == "hardcase-notify"
    }
    assert told == dict.fromkeys(("conclude", steps[0]), (True, "/etc/hardcase/notify")), "the first step checks it"


def test_the_description_says_what_the_parameters_mean_since_the_form_does_not() -> None:
    for name in compiling.PIPELINES:
        spec, _ = spec_of(name)
        for parameter, about in spec["root"]["inputDefinitions"]["parameters"].items():
            assert f"- **{parameter}**: {about['description']}" in spec["pipelineInfo"]["description"]


def test_every_step_has_what_it_needs_by_the_names_of_the_manifests() -> None:
    spec, kubernetes = spec_of("retraining")
    there, tasks = manifests(), tasks_of(spec)
    for step, settings in kubernetes.items():
        assert int(settings["activeDeadlineSeconds"]) >= 3600, step
        assert settings["securityContext"] == {"runAsUser": str(USER), "runAsGroup": str(USER), "runAsNonRoot": True}
        assert settings["fieldPathAsEnv"] == [
            {"fieldPath": "metadata.labels['pipeline/runid']", "name": "HARDCASE_RUN"}
        ]
        assert not {"configMapAsEnv", "secretAsEnv"} & set(settings), "kept six times a step in the workflow"
        names = [("ConfigMap", each["configMapName"]) for each in settings["configMapAsVolume"]]
        names += [("PersistentVolumeClaim", each["constant"]) for each in settings["pvcMount"]]
        assert set(names) <= set(there), step
        secrets = {each["secretName"]: each for each in settings["secretAsVolume"]}
        assert all(each["optional"] for each in secrets.values())
        assert {("ExternalSecret", name) for name in secrets} - {("ExternalSecret", "hardcase-signing")} <= set(there)
        mounts = {each["mountPath"] for each in [*settings["configMapAsVolume"], *secrets.values()]}
        assert {str(folder) for folder in MOUNTED[:2]} <= mounts
        cache = {each["mountPath"]: each for each in settings["emptyDirMounts"]}["/cache"]
        assert cache["sizeLimit"] == CACHE_SIZE and "genericEphemeralVolume" not in settings, "no claim for each step"
        assert bool(tasks[step]["cachingOptions"].get("enableCache")) == (
            step not in ("configure", "register", "conclude")
        )
    assert {"HARDCASE_STORE", "MLFLOW_TRACKING_URI"} <= set(there["ConfigMap", "hardcase-environment"]["data"])


def test_steps_with_a_model_ask_for_gpus_as_the_profile_says_and_the_others_for_none() -> None:
    spec, kubernetes = spec_of("retraining")
    there, resources = manifests(), spec["deploymentSpec"]["executors"]
    queue = there["LocalQueue", "gpu"]["metadata"]["name"]
    priorities = {name for kind, name in there if kind == "WorkloadPriorityClass"}
    for step, settings in kubernetes.items():
        asked = resources[f"exec-{step}"]["container"]["resources"]
        if step not in ON_GPUS:
            assert "accelerator" not in asked and "nodeSelector" not in settings, step
            assert asked["memoryLimit"] and asked["cpuLimit"], "else the namespace's default of 1 GiB holds"
            continue
        assert asked["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert f"{step}_gpus" in asked["accelerator"]["resourceCount"]
        assert f"{step}_memory" in asked["resourceMemoryLimit"]
        selector = settings["nodeSelector"]["nodeSelectorJson"]["taskOutputParameter"]
        assert selector["outputParameterKey"] == f"{step}_nodes"
        assert settings["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        (memory,) = [each for each in settings["emptyDirMounts"] if each["mountPath"] == "/dev/shm"]
        assert memory["medium"] == "Memory"
        labels = settings["podMetadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == queue
        assert labels["kueue.x-k8s.io/priority-class"] in priorities
        assert settings["podMetadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}


@pytest.mark.parametrize(("profile", "gpus", "label"), [("internvl3-2b", 8, "80gb"), ("internvl3-2b-lora", 8, "24gb")])
def test_a_profile_for_gpus_gets_them_all_for_training_and_one_a_shard(profile: str, gpus: int, label: str) -> None:
    found = machines(profile)
    shards = {step: found[step]["shards"] for step in ("rollout", "answer")}
    cpus, memory = PER_GPU[label]  # type: ignore[index]
    for step, number in {"sft": gpus, "grpo": gpus, **shards}.items():
        assert found[f"{step}_gpus"] == str(number), "text: a number is no GPU, without a word"
        assert found[f"{step}_nodes"] == {"hardcase.io/gpu-memory": label}
        assert (found[f"{step}_cpus"], found[f"{step}_memory"]) == (str(number * cpus), f"{number * memory}Gi")


def test_more_shards_than_a_node_has_gpus_go_to_several_nodes_and_the_step_waits_without_a_gpu() -> None:
    asked = {"cluster.rollout_shards": 32, "grpo.nodes": 2}
    found = machines("internvl3-2b", asked)
    assert (found["rollout"]["shards"], found["rollout"]["nodes"]) == (32, 4)
    for step in ("rollout", "grpo"):
        assert (found[f"{step}_gpus"], found[f"{step}_nodes"]) == ("", {"hardcase.io/pool": "steps"})
    assert found["sft_gpus"] == "8"


@pytest.mark.parametrize(
    ("settings", "sample"), [({}, 2000), ({"grpo.hard_share": 0.3}, None), ({"grpo.suspects": False}, None)]
)
def test_training_samples_are_all_mined_if_and_only_if_a_weight_depends_on_it(
    settings: dict[str, Any], sample: int | None
) -> None:
    planned = machines("internvl3-2b", settings)
    assert [planned[step]["parameters"]["config"].get("sample") for step in ("rollout", "mine")] == [sample] * 2


def test_a_profile_without_gpus_asks_for_none_and_fits_a_node_of_two_cpus() -> None:
    found = machines("tiny", {"cluster.rollout_shards": 3})
    assert (found["rollout"]["shards"], found["rollout"]["nodes"]) == (3, 1)
    pools = [each for (kind, _), each in manifests().items() if kind == "NodePool"]
    labels = [pool["spec"]["template"].get("metadata", {}).get("labels", {}) for pool in pools]
    for step in ON_GPUS:
        assert found[f"{step}_gpus"] == ""
        assert found[f"{step}_cpus"] == "1500m"
        assert any(found[f"{step}_nodes"].items() <= each.items() for each in labels)


@pytest.mark.parametrize(
    "step", ["configure", "fetch", "ingest", "validate", "mine", "evaluate", "drift", "register", "conclude"]
)
def test_light_step_starts_without_torch(step: str) -> None:
    code = (
        f"import sys, hardcase.steps.{step}; "
        "sys.exit(', '.join({'torch', 'transformers', 'trl', 'kfp'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
