"""An account, as far as moto is one: both environments planned, applied and destroyed, and who may do what in them.

The state lies in a bucket of the same server, locked as S3 locks. What moto does not know (`UNKNOWN_TO_MOTO`) is left
out of what is applied; that it is planned, and how, is asserted on the plan.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from hardcase.provenance.signing import open_keyring
from hardcase.store.store import open_store
from tests.support.machine import Machine
from tests.support.s3 import credentials, moto_bucket
from tests.support.terraform.evaluating import allowed
from tests.support.terraform.recording import Request, recording
from tests.support.terraform.running import (
    BOOTSTRAP,
    ENVS,
    KEYS,
    REPOSITORY,
    SLOW,
    TERRAFORM,
    UNKNOWN_TO_MOTO,
    VALUES,
    checkov,
    copied,
    done,
    lacking,
    leave_out,
    moto_server,
    need,
    terraform,
    values_file,
)

Resource = dict[str, Any]
LISTED = REPOSITORY / ".cache" / "terraform"
PREFIXES = ("main/", "kfp/", "mlflow/", "airflow-logs/")
BUCKET = "arn:aws:s3:::hardcase-prod"
ACCOUNTS = (
    *("pipeline-runner", "gpu-step", "light-step", "airflow-launcher", "airflow", "mlflow", "run-exporter"),
    *("ml-pipeline", "ml-pipeline-ui", "external-secrets", "prometheus-kube-prometheus-prometheus"),
)
# Prefixes that an account may read, and write; all else it may not.
READS = {
    "pipeline-runner": ("main/", "kfp/", "mlflow/"),
    "gpu-step": ("main/",),
    "light-step": ("main/",),
    "airflow-launcher": ("airflow-logs/",),
    "airflow": ("airflow-logs/",),
    "mlflow": ("mlflow/",),
    "ml-pipeline": ("kfp/",),
    "ml-pipeline-ui": ("kfp/",),
}
READ_ONLY = {"light-step", "ml-pipeline-ui"}
SIGNERS = {"pipeline-runner", "gpu-step"}
# What checkov cannot see in a plan, but in the files: that something is encrypted by a key that is yet to be made.
BY_KEY = {
    "CKV_AWS_26": "kms_master_key_id",
    "CKV_AWS_27": "kms_master_key_id",
    "CKV_AWS_149": "kms_key_id",
    "CKV_AWS_158": "kms_key_id",
    "CKV_AWS_184": "kms_key_id",
    "CKV_AWS_354": "performance_insights_kms_key_id",
}


@dataclass(frozen=True)
class Account:
    """What was seen: resources planned and applied, by address; outputs; locks of the state; what was left."""

    plan: Path
    planned: dict[str, Resource]
    applied: dict[str, Resource]
    outputs: dict[str, Any]
    locks: list[str]
    left: dict[str, int]

    def policies(self, account: str) -> list[dict[str, Any]]:
        """What the role of a pod's account may do."""
        found = [
            json.loads(each["policy"])
            for address, each in self.applied.items()
            if address == f'module.identity.aws_iam_role_policy.workload["{account}"]'
        ]
        assert found, f"no policy of {account}"
        return found

    def of(self, kind: str) -> dict[str, Resource]:
        """What is planned of a kind, by address."""
        return {address: each for address, each in self.planned.items() if re.search(rf"\.{kind}[.\[]", address)}


def resources(module: dict[str, Any]) -> Iterator[tuple[str, Resource]]:
    for each in module.get("resources", []):
        yield each["address"], each.get("values", {})  # of data that is not known yet there are none
    for child in module.get("child_modules", []):
        yield from resources(child)


def cycle(env: str, folder: Path) -> Account:
    """Bootstrap, plan, apply, look, destroy, as docs/how-to/provision-aws.md says."""
    with moto_server() as address:
        aws = {"AWS_ENDPOINT_URL": address}
        root = copied(folder / "terraform")
        leave_out(root, "bootstrap", BOOTSTRAP)
        bootstrap, here = root / "bootstrap", root / "envs" / env
        done(terraform(bootstrap, "init", "-input=false", "-lockfile=readonly"))
        done(terraform(bootstrap, "apply", "-auto-approve", "-var=bucket=acme-hardcase-state", **aws))
        done(
            terraform(
                here, "init", "-input=false", "-lockfile=readonly", "-backend-config=bucket=acme-hardcase-state", **aws
            )
        )
        values_file(here, {**VALUES, "protected": True})
        done(terraform(here, "plan", "-input=false", "-out=whole.tfplan", **aws))
        planned = json.loads(done(terraform(here, "show", "-json", "whole.tfplan", **aws)))
        (folder / "plan.json").write_text(json.dumps(planned))

        leave_out(root, "unknown", UNKNOWN_TO_MOTO)
        leave_out(root, "slow", SLOW if env == "dev" else {})
        values_file(here, {**VALUES, "protected": False})
        done(terraform(here, "apply", "-auto-approve", "-input=false", "-parallelism=40", **aws))
        state = json.loads(done(terraform(here, "show", "-json", **aws)))["values"]
        s3 = client("s3", address)
        versions = s3.list_object_versions(Bucket="acme-hardcase-state")
        locks = [each["Key"] for each in versions.get("DeleteMarkers", [])]
        done(terraform(here, "destroy", "-auto-approve", "-input=false", "-parallelism=40", **aws))
        left = {
            "clusters": len(client("eks", address).list_clusters()["clusters"]),
            "buckets": len(s3.list_buckets()["Buckets"]) - 1,  # that of states
            "gateways": len(
                client("ec2", address).describe_nat_gateways(
                    Filters=[{"Name": "state", "Values": ["available", "pending"]}]
                )["NatGateways"]
            ),
            "databases": len(client("rds", address).describe_db_instances()["DBInstances"]),
            "roles": len(
                [each for each in client("iam", address).list_roles()["Roles"] if "hardcase" in each["RoleName"]]
            ),
        }
    account = Account(
        plan=folder / "plan.json",
        planned=dict(resources(planned["planned_values"]["root_module"])),
        applied=dict(resources(state["root_module"])),
        outputs={name: each["value"] for name, each in state["outputs"].items()},
        locks=locks,
        left=left,
    )
    # For people: what was made and unmade, and what was only planned.
    (LISTED / f"{env}-applied.txt").write_text("".join(f"{address}\n" for address in sorted(account.applied)))
    (LISTED / f"{env}-only-planned.txt").write_text(
        "".join(f"{address}\n" for address in sorted(set(account.planned) - set(account.applied)))
    )
    return account


def client(service: str, address: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=address,
        region_name=KEYS["AWS_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(scope="module")
def cycles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Account]"]]:
    """Both at once: most of the time they wait for what moto has long made."""
    need(lacking())
    LISTED.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(ENVS)) as pool:
        yield {env: pool.submit(cycle, env, tmp_path_factory.mktemp(env)) for env in ENVS}


@pytest.fixture(scope="module")
def account(cycles: dict[str, "Future[Account]"]) -> Callable[[str], Account]:
    return lambda env: cycles[env].result()


@pytest.fixture(scope="module")
def asked_of(cycles: dict[str, "Future[Account]"], tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[Request]]:
    """What each account's programs really ask AWS for.

    A whole run with its store on S3, then what reads the store; all while Terraform waits. The run signs by a file, as
    moto hashes anew what it is given as a digest, so that nobody can verify it; KMS is asked for one signature beside.
    """
    machine = Machine(tmp_path_factory.mktemp("machine") / "home")
    seen: dict[str, set[Request]] = {}
    with moto_bucket("hardcase-prod", object_lock=True):
        kms = boto3.client("kms")
        key = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["KeyId"]
        kms.create_alias(AliasName="alias/hardcase-signing", TargetKeyId=key)
        store, signing = ("--store", "s3://hardcase-prod/main"), "awskms:alias/hardcase-signing"
        with recording("KEY") as (address, seen["pipeline-runner"]), credentials(address):
            summary = machine.run(*store, "--set", "register.retention_days=2")
            open_keyring(signing, []).sign({"_type": "a statement"})
        with recording("KEY") as (address, seen["light-step"]), credentials(address):
            for command in (("audit", "image-screener:1", *store), ("store", "gc", "--dry-run", *store)):
                done_ = machine.call(*command)
                assert done_.returncode == 0, done_.stderr
            open_keyring(signing, [])  # as they do where such a key is named
        with recording("KEY") as (address, seen["run-exporter"]), credentials(address):
            store = open_store("s3://hardcase-prod/main")
            assert list(exporter().list_scores(store))
            reader = exporter().Exporter({"HARDCASE_STORE": "s3://hardcase-prod/main"})
            reader._read_records([summary["run_id"]])
            assert set(reader.states) == {summary["run_id"]}
        with recording("KEY") as (address, seen["mlflow"]), credentials(address):
            files = S3ArtifactRepository("s3://hardcase-prod/mlflow/1/run/artifacts")
            (sample := machine.home / "sample.txt").write_text("a model")
            files.log_artifact(str(sample))
            assert [each.path for each in files.list_artifacts()] == ["sample.txt"]
            files.download_artifacts("sample.txt")
    return seen


def exporter() -> Any:
    place = REPOSITORY / "infra" / "kubernetes" / "base" / "monitoring" / "exporter.py"
    spec = importlib.util.spec_from_file_location("exporter", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_role_allows_all_that_its_programs_ask_for(
    account: Callable[[str], Account], asked_of: dict[str, set[Request]]
) -> None:
    signing_key = account("prod").applied["module.keys.aws_kms_key.signing"]["arn"]
    actions = {name: {action for action, _, _ in requests} for name, requests in asked_of.items()}
    assert {"s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:PutObjectRetention", "kms:Sign"} <= actions[
        "pipeline-runner"
    ]
    assert "s3:ListBucketVersions" in actions["light-step"] and "s3:PutObject" not in actions["light-step"]
    asked_of = {**asked_of, "gpu-step": asked_of["pipeline-runner"]}
    for name, requests in asked_of.items():
        policies = account("prod").policies(name)
        refused = [
            (action, resource)
            for action, resource, context in sorted(requests)
            if not allowed(policies, action, resource.replace("KEY", signing_key), **dict(context))
        ]
        assert not refused, f"{name}: {refused[:5]}"


@pytest.mark.parametrize("env", ENVS)
def test_an_environment_is_made_and_unmade(account: Callable[[str], Account], env: str) -> None:
    seen = account(env)
    kinds = {address.rpartition("module.")[2].split(".")[-2] for address in seen.applied}
    assert {"aws_eks_cluster", "aws_eks_node_group", "aws_s3_bucket", "aws_ecr_repository", "aws_kms_key"} <= kinds
    assert len(seen.applied) > 100
    assert seen.left == {"clusters": 0, "buckets": 0, "gateways": 0, "databases": 0, "roles": 0}


@pytest.mark.parametrize("env", ENVS)
def test_the_state_is_locked_while_it_is_written(account: Callable[[str], Account], env: str) -> None:
    assert f"hardcase/{env}.tfstate.tflock" in account(env).locks


@pytest.mark.parametrize("env", ENVS)
def test_what_moto_does_not_know_is_planned(account: Callable[[str], Account], env: str) -> None:
    seen = account(env)
    for module, known in UNKNOWN_TO_MOTO.items():
        for address in known:
            assert any(name.startswith(f"module.{module}.{address}") for name in seen.planned), address
            assert not any(name.startswith(f"module.{module}.{address}") for name in seen.applied), address
    addons = {each["addon_name"]: each["addon_version"] for each in seen.of("aws_eks_addon").values()}
    assert set(addons) == {
        "vpc-cni",
        "kube-proxy",
        "coredns",
        "eks-pod-identity-agent",
        "aws-ebs-csi-driver",
        "aws-efs-csi-driver",
    }
    assert all("eksbuild" in version for version in addons.values())
    (admin,) = seen.of("aws_eks_access_policy_association").values()
    assert admin["principal_arn"] == VALUES["admin_role_arns"][0]
    assert admin["policy_arn"].endswith("AmazonEKSClusterAdminPolicy")
    budgets = seen.of("aws_budgets_budget").values()
    assert all(float(each["limit_amount"]) > 0 and len(each["notification"]) == 3 for each in budgets)
    (anomalies,) = seen.of("aws_ce_anomaly_subscription").values()
    assert anomalies["frequency"] == "IMMEDIATE"


@pytest.mark.parametrize("env", ENVS)
def test_outputs_are_what_the_cluster_and_the_launcher_take(account: Callable[[str], Account], env: str) -> None:
    outputs = account(env).outputs
    overlay = REPOSITORY / "infra" / "kubernetes" / "overlays" / env / "places.yaml"
    ours, theirs = (yaml.safe_load(text) for text in (outputs["places"], overlay.read_text()))
    for places in (ours, theirs):
        places["data"]["providers"] = yaml.safe_load(places["data"]["providers"])
    assert ours["data"].pop("files").startswith("fs-") and theirs["data"].pop("files")
    assert ours == theirs
    registry = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    assert outputs["launch"] == {
        "region": "eu-central-1",
        "cluster": "hardcase",
        "namespace": "hardcase",
        "service_account": "pipeline-runner",
        "images": {name: f"{registry}/{name}" for name in outputs["launch"]["images"]},
        "store": f"s3://hardcase-{env}/main",
        "signing_key": "awskms:alias/hardcase-signing",
    }
    assert outputs["karpenter"]["node_role"] == "hardcase-node"


@pytest.mark.parametrize("env", ENVS)
def test_what_the_costs_count_is_what_the_plan_has(account: Callable[[str], Account], env: str) -> None:
    seen = account(env)
    (group,) = [each for each in seen.of("aws_eks_node_group").values() if each["node_group_name"] == "system"]
    nodes = group["scaling_config"][0]["min_size"]
    (template,) = seen.of("aws_launch_template").values()
    databases = list(seen.of("aws_db_instance").values())
    has = {
        "EKS control plane": len(seen.of("aws_eks_cluster")),
        group["instance_types"][0]: nodes,
        "NAT gateway": len(seen.of("aws_nat_gateway")),
        "public IPv4 address": len(seen.of("aws_eip")),
        "interface endpoint, a zone": 3 * len(seen.of("aws_vpc_endpoint.interface")),
        "gp3 disk, a GB-month": nodes
        * sum(disk["ebs"][0]["volume_size"] for disk in template["block_device_mappings"]),
        "KMS key, a month": len(seen.of("aws_kms_key")),
        "secret, a month": len(seen.of("aws_secretsmanager_secret")) + len(databases),
        "CloudWatch alarm, a month": len(seen.of("aws_cloudwatch_metric_alarm")),
    }
    for each in databases:
        assert each["multi_az"]
        has[f"{each['instance_class']} with standby"] = 1
        has["RDS gp3 with standby, a GB-month"] = each["allocated_storage"]
    book = yaml.safe_load((TERRAFORM / "prices.yaml").read_text())
    assert book["months"][env]["counted"] == {thing: amount for thing, amount in has.items() if amount}


@pytest.mark.parametrize("env", ENVS)
def test_checkov_finds_nothing_unexplained_in_the_plan(account: Callable[[str], Account], env: str) -> None:
    plan = account(env).plan
    found = checkov("--file", plan, "--repo-root-for-plan-enrichment", TERRAFORM)
    assert found["summary"]["passed"] > 100
    unknown = {
        each["address"]: each["change"]["after_unknown"] for each in json.loads(plan.read_text())["resource_changes"]
    }
    failed = [
        (each["check_id"], each["resource"])
        for each in found["results"]["failed_checks"]
        if not unknown[each["resource"]].get(BY_KEY.get(each["check_id"], ""))
    ]
    assert not failed


def test_a_role_allows_nothing_on_another_prefix_and_removes_nothing(account: Callable[[str], Account]) -> None:
    for name in ACCOUNTS:
        policies = account("prod").policies(name)
        for prefix in (*PREFIXES, "", "elsewhere/"):
            key = f"{BUCKET}/{prefix}objects/ab/abcd"
            mine = prefix in READS.get(name, ())
            assert allowed(policies, "s3:GetObject", key) == mine, (name, prefix)
            assert allowed(policies, "s3:ListBucket", BUCKET, s3__prefix=f"{prefix}objects/") == mine, (name, prefix)
            assert allowed(policies, "s3:PutObject", key) == (mine and name not in READ_ONLY), (name, prefix)
            for action in ("DeleteObject", "DeleteObjectVersion", "BypassGovernanceRetention", "PutObjectAcl"):
                assert not allowed(policies, f"s3:{action}", key), (name, action)
        assert not allowed(policies, "s3:GetObject", "arn:aws:s3:::hardcase-dev/main/objects/ab/abcd"), name
        assert not allowed(policies, "s3:ListBucket", BUCKET), f"{name} lists the whole bucket"
        for action in ("PutBucketPolicy", "PutLifecycleConfiguration", "PutBucketVersioning", "DeleteBucket"):
            assert not allowed(policies, f"s3:{action}", BUCKET), (name, action)


def test_the_exporter_reads_dossiers_and_no_model(account: Callable[[str], Account]) -> None:
    policies = account("prod").policies("run-exporter")
    assert allowed(policies, "s3:GetObject", f"{BUCKET}/main/models/image-screener/1/scores.json")
    assert not allowed(policies, "s3:GetObject", f"{BUCKET}/main/objects/ab/abcd")
    assert not allowed(policies, "s3:PutObject", f"{BUCKET}/main/models/image-screener/1/scores.json")


def test_only_who_trains_signs_locks_and_reads_the_sources(account: Callable[[str], Account]) -> None:
    keys = {
        name: account("prod").applied[f"module.keys.aws_kms_key.{name}"]["arn"]
        for name in ("signing", "artifacts", "platform")
    }
    for name in ACCOUNTS:
        policies, trains = account("prod").policies(name), name in SIGNERS
        assert allowed(policies, "kms:Sign", keys["signing"]) == trains, name
        assert allowed(policies, "kms:GetPublicKey", keys["signing"]) == (trains or name == "light-step"), name
        assert not allowed(policies, "kms:Sign", keys["artifacts"])
        assert not allowed(policies, "kms:ScheduleKeyDeletion", keys["signing"])
        assert allowed(policies, "s3:PutObjectRetention", f"{BUCKET}/main/models/a/ledger/1") == trains, name
        assert not allowed(policies, "s3:PutObjectRetention", f"{BUCKET}/main/objects/ab/abcd"), name
        # Without it the head of a locked object says nothing of its lock, and `retain` would shorten it.
        assert allowed(policies, "s3:GetObjectRetention", f"{BUCKET}/main/models/a/ledger/1") == (
            trains or name == "light-step"
        ), name
        assert allowed(policies, "s3:GetObject", "arn:aws:s3:::acme-pictures/labelled/1.png") == trains, name
        looks = trains or name == "airflow-launcher"
        assert allowed(policies, "s3:ListBucket", "arn:aws:s3:::acme-pictures", s3__prefix="labelled/") == looks, name
        assert not allowed(policies, "s3:GetObject", "arn:aws:s3:::acme-pictures/private/1.png"), name
        assert not allowed(policies, "s3:PutObject", "arn:aws:s3:::acme-pictures/labelled/1.png"), name
        reads = bool(READS.get(name) or name == "run-exporter")
        by_s3 = {"kms__ViaService": "s3.eu-central-1.amazonaws.com"}
        assert allowed(policies, "kms:Decrypt", keys["artifacts"], **by_s3) == reads, name
        assert not allowed(policies, "kms:Decrypt", keys["artifacts"]), f"{name}: only by S3"
        assert allowed(policies, "kms:GenerateDataKey", keys["artifacts"], **by_s3) == (
            name in READS and name not in READ_ONLY
        ), name


def test_only_external_secrets_reads_secrets_and_only_ours(account: Callable[[str], Account]) -> None:
    place = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
    for name in ACCOUNTS:
        policies = account("prod").policies(name)
        reads = allowed(policies, "secretsmanager:GetSecretValue", f"{place}hardcase/mlflow-AbCdEf")
        assert reads == (name == "external-secrets"), name
        assert not allowed(policies, "secretsmanager:GetSecretValue", f"{place}rds!db-1-AbCdEf"), name
        assert not allowed(policies, "secretsmanager:PutSecretValue", f"{place}hardcase/mlflow-AbCdEf"), name


def test_a_role_is_given_to_the_pods_of_its_account_only(account: Callable[[str], Account]) -> None:
    associations = account("prod").of("aws_eks_pod_identity_association")
    assert len(associations) == len(ACCOUNTS) + 1  # and Karpenter
    for name in ACCOUNTS:
        planned = associations[f'module.identity.aws_eks_pod_identity_association.workload["{name}"]']
        (trust,) = json.loads(
            account("prod").applied[f'module.identity.aws_iam_role.workload["{name}"]']["assume_role_policy"]
        )["Statement"]
        assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
        assert trust["Condition"] == {
            "StringEquals": {
                "aws:RequestTag/kubernetes-namespace": planned["namespace"],
                "aws:RequestTag/kubernetes-service-account": name,
            }
        }


def test_karpenter_ends_only_what_it_made_and_passes_only_the_role_of_nodes(account: Callable[[str], Account]) -> None:
    applied = account("prod").applied
    policies = [json.loads(applied["module.cluster.aws_iam_role_policy.karpenter"]["policy"])]
    instance = "arn:aws:ec2:eu-central-1:123456789012:instance/i-1"
    tags = {"aws__ResourceTag/kubernetes.io/cluster/hardcase": "owned", "aws__ResourceTag/karpenter.sh/nodepool": "cpu"}
    assert allowed(policies, "ec2:TerminateInstances", instance, **tags)
    assert not allowed(policies, "ec2:TerminateInstances", instance)
    node, other = (applied[f'module.cluster.aws_iam_role.node["{name}"]']["arn"] for name in ("karpenter", "managed"))
    to_ec2 = {"iam__PassedToService": "ec2.amazonaws.com"}
    assert allowed(policies, "iam:PassRole", node, **to_ec2)
    assert not allowed(policies, "iam:PassRole", other, **to_ec2)
    assert not allowed(policies, "iam:PassRole", node, iam__PassedToService="lambda.amazonaws.com")


def test_a_build_pushes_images_from_its_branch_and_does_nothing_else(account: Callable[[str], Account]) -> None:
    applied = account("prod").applied
    policies = [json.loads(applied['module.identity.aws_iam_role_policy.ci["push"]']["policy"])]
    repository = "arn:aws:ecr:eu-central-1:123456789012:repository/hardcase/mlflow"
    assert allowed(policies, "ecr:PutImage", repository)
    for action in ("ecr:BatchDeleteImage", "ecr:SetRepositoryPolicy", "s3:GetObject", "sts:AssumeRole"):
        assert not allowed(policies, action, repository)
    assert not allowed(policies, "ecr:PutImage", "arn:aws:ecr:eu-central-1:123456789012:repository/other")
    (trust,) = json.loads(applied['module.identity.aws_iam_role.ci["push"]']["assume_role_policy"])["Statement"]
    assert trust["Condition"]["StringLike"] == {
        "token.actions.githubusercontent.com:sub": "repo:acme/hardcase:ref:refs/heads/main"
    }


def test_the_bucket_takes_no_request_without_tls_and_no_other_key(account: Callable[[str], Account]) -> None:
    applied = account("prod").applied
    policy = json.loads(applied["module.artifacts.aws_s3_bucket_policy.data"]["policy"])
    key = applied["module.keys.aws_kms_key.artifacts"]["arn"]
    may = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    where = f"{BUCKET}/main/objects/ab/abcd"
    named = "s3__x-amz-server-side-encryption-aws-kms-key-id"
    tls = {"aws__SecureTransport": "true"}
    assert allowed([may, policy], "s3:PutObject", where, **tls)
    assert allowed([may, policy], "s3:PutObject", where, **tls, **{named: key})
    assert not allowed([may, policy], "s3:PutObject", where, **tls, **{named: f"{key}-of-another"})
    assert not allowed([may, policy], "s3:GetObject", where, aws__SecureTransport="false")


def test_the_evaluator_itself_knows_deny_wildcards_and_conditions() -> None:
    policy = {
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:Get*"], "Resource": "arn:aws:s3:::a/b?/*"},
            {
                "Effect": "Deny",
                "Action": "s3:*",
                "Resource": "*",
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            },
        ]
    }
    assert allowed([policy], "s3:getobject", "arn:aws:s3:::a/b1/c")
    assert not allowed([policy], "s3:GetObject", "arn:aws:s3:::a/b/c")
    assert not allowed([policy], "s3:GetObject", "arn:aws:s3:::A/b1/c")
    assert not allowed([policy], "s3:PutObject", "arn:aws:s3:::a/b1/c")
    assert not allowed([policy], "s3:GetObject", "arn:aws:s3:::a/b1/c", aws__SecureTransport="false")
    with pytest.raises(AssertionError, match="NumericEquals"):
        allowed(
            [
                {
                    "Statement": {
                        "Effect": "Allow",
                        "Action": "*",
                        "Resource": "*",
                        "Condition": {"NumericEquals": {"a": "1"}},
                    }
                }
            ],
            "a:B",
            "c",
        )
