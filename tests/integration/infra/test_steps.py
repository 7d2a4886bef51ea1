"""What pods of steps ask for in the compiled pipelines, against what the manifests give them."""

import re
from functools import cache
from typing import Any

import pytest
import yaml

from tests.support.manifests import OVERLAYS, REPOSITORY, Manifest, of, one, rendered
from tests.support.plans import machines

PIPELINES = ("retraining", "evaluation")
MADE_BY = {"configMapAsVolume": "ConfigMap", "secretAsVolume": "ExternalSecret", "pvcMount": "PersistentVolumeClaim"}
# CPUs of a node of two that are left: EKS reserves 70m, kube-proxy, VPC CNI and the CSI drivers ask for some 230m.
LEFT_OF_TWO = 1.7
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@cache
def compiled(pipeline: str) -> tuple[Manifest, Manifest]:
    """The executors of a compiled pipeline, and what Kubernetes is asked for each."""
    spec, platform = yaml.safe_load_all(
        (REPOSITORY / "hardcase" / "compiled" / f"{pipeline}.yaml").read_text(encoding="utf-8")
    )
    executors = spec["deploymentSpec"]["executors"]
    return executors, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def amount(text: Any) -> float:
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text))
    assert match, text
    return float(match[1]) * UNITS[match[2]]


def defaults(overlay: str) -> Manifest:
    """What containers of runs get that say nothing."""
    (limits,) = [each for each in of(overlay, "LimitRange") if each["metadata"]["namespace"] == "hardcase"]
    (container,) = limits["spec"]["limits"]
    return container


def mounts(pipeline: str) -> set[tuple[str, str, bool]]:
    """Kind and name of what steps mount, and whether they do without."""
    return {
        (kind, each.get("configMapName") or each.get("secretName") or each["constant"], bool(each.get("optional")))
        for executor in compiled(pipeline)[1].values()
        for field, kind in MADE_BY.items()
        for each in executor.get(field, [])
    }


@pytest.mark.parametrize("overlay", [*OVERLAYS, "local"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_steps_mount_is_there(pipeline: str, overlay: str) -> None:
    made = {(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)}
    by_hand = {("ExternalSecret", name) for name in ("hardcase-credentials", "hardcase-signing", "hardcase-notify")}
    signing = {("ExternalSecret", "hardcase-signing")}  # production signs by KMS
    assert {kind for kind, _, _ in mounts(pipeline)} == set(MADE_BY.values())
    missing = {(kind, name) for kind, name, _ in mounts(pipeline)} - made
    assert missing == {"dev": set(), "prod": signing, "local": by_hand}[overlay]
    assert all(optional for kind, _, optional in mounts(pipeline) if kind == "ExternalSecret")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_step_claims_no_volume_of_its_own(pipeline: str) -> None:
    """A claim lives as long as its workflow, an hour: four runs filled the quota, and every further step waited."""
    for name, executor in compiled(pipeline)[1].items():
        assert "genericEphemeralVolume" not in executor, name
        assert "/cache" in {each["mountPath"] for each in executor["emptyDirMounts"]}, name
    claims = int(one("prod", "ResourceQuota", "runs")["spec"]["hard"]["persistentvolumeclaims"])
    (scratch,) = [each for each in of("prod", "PersistentVolumeClaim") if each["metadata"]["namespace"] == "hardcase"]
    assert scratch["metadata"]["name"] == "hardcase-scratch"
    assert claims >= 1
    storage = one("prod", "ResourceQuota", "runs")["spec"]["hard"]["requests.storage"]
    assert amount(storage) >= amount(scratch["spec"]["resources"]["requests"]["storage"])


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_light_step_and_what_kubeflow_adds_to_it_fit_a_node_of_two_cpus(pipeline: str, overlay: str) -> None:
    """`wait` runs beside `main`; `init` and `kfp-launcher` run before them, and ask for less."""
    limits = defaults(overlay)
    added = amount(limits["defaultRequest"]["cpu"])
    light = 0
    for name, executor in compiled(pipeline)[0].items():
        resources = executor["container"]["resources"]
        if "accelerator" not in resources:
            light += 1
            assert amount(resources["resourceCpuRequest"]) + added <= LEFT_OF_TWO, name
            assert amount(resources["resourceCpuLimit"]) <= amount(limits["max"]["cpu"]), name
    assert light >= 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_profile_without_gpus_fits_a_node_of_two_cpus(overlay: str) -> None:
    limits = defaults(overlay)
    for profile in ("tiny", "smoke"):
        asked = machines(profile)
        for step in ("sft", "rollout", "grpo", "answer"):
            assert amount(asked[f"{step}_cpus"]) + amount(limits["defaultRequest"]["cpu"]) <= LEFT_OF_TWO, step


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_fill_its_cache(overlay: str) -> None:
    """An emptyDir counts as ephemeral storage of its pod, which is evicted above the sum of its containers' limits."""
    limits = defaults(overlay)
    node = one(overlay, "TrainingRuntime", "hardcase-train") if overlay == "prod" else None
    for pipeline in PIPELINES:
        for name, executor in compiled(pipeline)[1].items():
            (cache_,) = [each for each in executor["emptyDirMounts"] if each["mountPath"] == "/cache"]
            assert amount(cache_["sizeLimit"]) < amount(limits["default"]["ephemeral-storage"]), name
    disks = [
        amount(disk["ebs"]["volumeSize"])
        for each in of(overlay, "EC2NodeClass")
        for disk in each["spec"]["blockDeviceMappings"]
        if disk["deviceName"] == "/dev/xvdb"
    ]
    assert min(disks) > amount(limits["default"]["ephemeral-storage"])
    if node:
        spec = node["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        volumes = {each["name"]: each for each in spec["volumes"]}
        bound = spec["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert sum(amount(volumes[name]["emptyDir"]["sizeLimit"]) for name in ("cache", "tmp")) < amount(bound)


def flavors(overlay: str, selector: dict[str, str]) -> set[str]:
    """The flavors to which Kueue admits a pod of that node selector.

    Of the selector only the labels of some flavor of the group count (kueue v0.19.2,
    pkg/scheduler/flavorassigner/flavorassigner.go:1278).
    """
    labels = {each["metadata"]["name"]: each["spec"]["nodeLabels"] for each in of(overlay, "ResourceFlavor")}
    known = {key for each in labels.values() for key in each}
    asked = {key: value for key, value in selector.items() if key in known}.items()
    return {name for name, each in labels.items() if asked <= each.items()}


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_a_step_that_only_waits_for_its_nodes_is_admitted_to_no_gpu(step: str) -> None:
    assert flavors("prod", machines("internvl3-2b")[f"{step}_nodes"]) == {"gpu-80gb"}
    waiting = machines("internvl3-2b", {f"{step}.nodes": 2})
    assert flavors("prod", waiting[f"{step}_nodes"]) == {"cpu"}
    assert waiting[f"{step}_gpus"] == ""
    assert flavors("dev", machines("internvl3-2b-lora")[f"{step}_nodes"]) == {"gpu-24gb"}


def test_dev_refuses_a_training_on_several_nodes_at_once_as_it_has_no_such_nodes() -> None:
    """The step asks Trainer for its runtime first; one that does not exist is bad input (runtime/trainjob.py)."""
    for overlay, there in (("prod", True), ("dev", False)):
        runtimes = {each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "TrainingRuntime"}
        assert runtimes == {"hardcase-ingest", *(["hardcase-train"] if there else [])}, overlay
    runtime = one("prod", "TrainingRuntime", "hardcase-train")
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    selector = node["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert flavors("prod", selector) == {"gpu-80gb"}
    assert flavors("dev", selector) != {"gpu-24gb"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_node_that_reads_a_source_needs_no_gpu(overlay: str) -> None:
    (node,) = one(overlay, "TrainingRuntime", "hardcase-ingest")["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert flavors(overlay, pod["nodeSelector"]) == {"cpu"}
    (container,) = pod["containers"]
    assert not any("gpu" in name for name in container["resources"]["limits"])
    assert "/python-light:" in container["image"]
    assert pod["serviceAccountName"] == "pipeline-runner"


@pytest.mark.parametrize("name", ["hardcase-train", "hardcase-ingest"])
def test_a_node_that_fails_is_not_started_again_and_keeps_its_log(name: str) -> None:
    """JobSet 0.12 writes OnFailure where a runtime names nothing."""
    runtime = one("prod", "TrainingRuntime", name)
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert node["template"]["spec"]["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    sources = {name: each for given in pod["containers"][0]["envFrom"] for name, each in given.items()}
    assert sources["configMapRef"]["name"] == "hardcase-environment"
    assert sources["secretRef"] == {"name": "hardcase-credentials", "optional": True}


@pytest.mark.parametrize("overlay", [*OVERLAYS, "local"])
def test_caches_of_libraries_are_the_images_and_no_secret_is_among_the_variables(overlay: str) -> None:
    data = one(overlay, "ConfigMap", "hardcase-environment")["data"]
    assert {"AWS_REGION", "HARDCASE_STORE", "HARDCASE_SIGNING_KEY"} <= set(data)
    assert not {name for name in data if name.endswith(("_HOME", "_CACHE_DIR"))}
    assert not {name for name in data if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY", name)}
