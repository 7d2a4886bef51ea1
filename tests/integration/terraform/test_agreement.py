"""Terraform and infra/kubernetes meet in names. What one of them expects, the other has."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.terraform.running import ENVS, REPOSITORY, TERRAFORM

KUBERNETES = REPOSITORY / "infra" / "kubernetes"
# Accounts of operators, which are not among our manifests.
OPERATORS = {
    "external-secrets/external-secrets",
    "kubeflow/ml-pipeline",
    "kubeflow/ml-pipeline-ui",
    "monitoring/prometheus-kube-prometheus-prometheus",
}


def manifests(*folders: str) -> list[dict[str, Any]]:
    files = sorted(path for folder in folders for path in (KUBERNETES / folder).rglob("*.yaml"))
    return [each for path in files for each in yaml.safe_load_all(path.read_text()) if each and "kind" in each]


def kind(name: str, *folders: str) -> list[dict[str, Any]]:
    found = [each for each in manifests(*folders) if each["kind"] == name]
    assert found
    return found


def source(path: str) -> str:
    return (TERRAFORM / path).read_text()


def default(env: str, variable: str) -> str:
    found = re.search(
        rf'^variable "{variable}".*?default\s+= "([^"]+)"', source(f"envs/{env}/variables.tf"), re.M | re.S
    )
    assert found, variable
    return found[1]


@pytest.mark.parametrize("env", ENVS)
def test_region_bucket_and_range_are_those_of_places(env: str) -> None:
    (places,) = kind("ConfigMap", f"overlays/{env}")
    named = {key: places["data"][key] for key in ("region", "bucket", "vpc")}
    assert named == {
        "region": default(env, "region"),
        "bucket": default(env, "bucket"),
        "vpc": default(env, "vpc_cidr"),
    }


def test_each_account_that_may_ask_aws_has_a_role_and_no_other() -> None:
    workloads = re.findall(
        r'^    ([a-z-]+)\s+= merge\(local\.none, \{\s*namespace = "([a-z-]+)"', source("modules/identity/main.tf"), re.M
    )
    with_roles = {f"{namespace}/{account}" for account, namespace in workloads}
    accounts = {
        f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in kind("ServiceAccount", "base")
    }
    assert with_roles - OPERATORS == accounts
    assert with_roles > OPERATORS


@pytest.mark.parametrize("env", ENVS)
def test_each_secret_that_is_fetched_is_made_and_no_other(env: str) -> None:
    folders = ["base", f"overlays/{env}"] + (["components/postgres"] if env == "dev" else [])
    fetched = {
        each["remoteRef"]["key"] for secret in kind("ExternalSecret", *folders) for each in secret["spec"]["data"]
    }
    made = re.search(r"^  secrets\s+= (\[[^]]+\])", source(f"envs/{env}/main.tf"), re.M)
    assert made
    assert {f"hardcase/{name}" for name in yaml.safe_load(made[1])} == fetched


def test_nodes_find_their_role_subnets_and_groups() -> None:
    names = re.findall(r'name\s+= "(\w+)"', source("envs/prod/main.tf"))
    assert "hardcase" in names
    for each in kind("EC2NodeClass", "base"):
        assert each["spec"]["role"] == "hardcase-node"
        for terms in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
            assert each["spec"][terms] == [{"tags": {"karpenter.sh/discovery": "hardcase"}}]
        assert each["spec"]["tags"]["project"] == "hardcase"
    assert '"${var.name}-node"' in source("modules/cluster/nodes.tf")


def test_gpu_types_carry_the_label_that_pools_give_their_families() -> None:
    types = dict(re.findall(r'^    "(\w+)\.\w+"\s+= \{ memory = "(\w+)"', source("modules/cluster/gpu-types.tf"), re.M))
    assert {"p4d", "p5", "p5en", "g6e"} <= set(types)
    for pool in kind("NodePool", "base"):
        memory = pool["spec"]["template"].get("metadata", {}).get("labels", {}).get("hardcase.io/gpu-memory")
        families = [
            family
            for each in pool["spec"]["template"]["spec"]["requirements"]
            if each["key"] == "karpenter.k8s.aws/instance-family"
            for family in each["values"]
        ]
        assert bool(memory) == pool["metadata"]["name"].startswith("gpu-")
        assert all(types[family] == memory for family in families), pool["metadata"]["name"]


def test_the_budget_of_gpus_counts_the_tag_that_gpu_nodes_carry() -> None:
    (gpu,) = [each for each in kind("EC2NodeClass", "base") if each["metadata"]["name"] == "gpu"]
    assert f"user:pool${gpu['spec']['tags']['pool']}" in source("modules/observability/money.tf")
    assert 'pool = "gpu"' in source("modules/cluster/nodes.tf")


def test_images_that_manifests_and_pipeline_name_have_a_repository() -> None:
    made = set(
        re.findall(
            r'"(hardcase/[a-z-]+|postgres)"', source("modules/registry/variables.tf") + source("envs/dev/main.tf")
        )
    )
    pipeline = set(
        re.findall(r"image: (hardcase/[a-z-]+):", (REPOSITORY / "pipelines" / "retraining.yaml").read_text())
    )
    overlays = {
        image["newName"]
        for env in ENVS
        for image in yaml.safe_load((KUBERNETES / "overlays" / env / "kustomization.yaml").read_text())["images"]
    }
    charts = yaml.safe_load((KUBERNETES / "helm" / "airflow.yaml").read_text())["images"]["airflow"]["repository"]
    assert pipeline
    assert pipeline | overlays | {charts} <= made


def test_prefixes_of_the_bucket_are_those_that_pods_are_told() -> None:
    told = " ".join(
        path.read_text() for path in [*(KUBERNETES / "base").rglob("*.yaml"), *Path(KUBERNETES / "helm").glob("*.yaml")]
    )
    prefixes = set(re.findall(r"s3://[a-z-]+/([a-z-]+)", told))
    assert prefixes == {"main", "kfp", "mlflow", "airflow-logs"}
    given = set(
        re.findall(r'"([a-z-]+)/', re.findall(r"workloads = merge\(.*", source("modules/identity/main.tf"), re.S)[0])
    )
    assert prefixes <= given
    assert "awskms:alias/hardcase-signing" in told
    assert '"alias/${var.name}-signing"' in source("modules/keys/main.tf")


def test_costs_of_a_retraining_count_the_gpus_that_the_profile_asks_for() -> None:
    profile = yaml.safe_load((REPOSITORY / "profiles" / "internvl3-2b.yaml").read_text())
    steps = yaml.safe_load(source("prices.yaml"))["training"]["steps"]
    asked = {
        "sft": profile["sft"]["processes"],
        "rollout": profile["cluster"]["rollout_shards"],
        "grpo: its rollouts": profile["grpo"]["processes"],
        "grpo: its steps": profile["grpo"]["processes"],
        "answer": 2 * profile["cluster"]["answer_shards"],
    }
    assert {name: step["gpus"] for name, step in steps.items()} == asked
