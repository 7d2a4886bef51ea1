"""An account, as far as moto is one: both environments planned, applied and destroyed, and who may do what in them.

The state lies in a bucket of the same server, locked as S3 locks. What moto does not know (`UNKNOWN_TO_MOTO`) is left out
of what is applied; that it is planned, and how, is asserted on the plan.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.infra.terraform.evaluating import allowed
from tests.infra.terraform.running import (
    ENVS,
    KEYS,
    SLOW,
    UNKNOWN_TO_MOTO,
    VALUES,
    copied,
    done,
    moto_server,
    need_terraform,
    terraform,
    values_file,
)

Resource = dict[str, Any]


@dataclass(frozen=True)
class Account:
    """What was seen: resources planned and applied, by address; outputs; what was left after the end."""

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

    def of(self, kind: str, *, applied: bool = False) -> dict[str, Resource]:
        source = self.applied if applied else self.planned
        return {address: each for address, each in source.items() if f".{kind}." in f".{address}"}


def resources(module: dict[str, Any]) -> Iterator[tuple[str, Resource]]:
    for each in module.get("resources", []):
        yield each["address"], each["values"]
    for child in module.get("child_modules", []):
        yield from resources(child)


def cycle(env: str, folder: Path) -> Account:
    """Bootstrap, plan, apply, look, destroy, as docs/terraform.md says."""
    slow = SLOW if env == "dev" else {"state": SLOW["state"]}
    with moto_server() as address:
        aws = {"AWS_ENDPOINT_URL": address}
        root = copied(folder / "terraform", left_out=slow)
        bootstrap, here = root / "bootstrap", root / "envs" / env
        done(terraform(bootstrap, "init", "-input=false", "-lockfile=readonly"))
        done(terraform(bootstrap, "apply", "-auto-approve", "-var=bucket=acme-hardcase-state", **aws))
        done(terraform(here, "init", "-input=false", "-lockfile=readonly", "-backend-config=bucket=acme-hardcase-state", **aws))
        values_file(here, {**VALUES, "protected": True})
        done(terraform(here, "plan", "-input=false", "-out=whole.tfplan", **aws))
        planned = json.loads(done(terraform(here, "show", "-json", "whole.tfplan", **aws)))
        (folder / "plan.json").write_text(json.dumps(planned))

        copied(folder / "less", left_out={**UNKNOWN_TO_MOTO, **slow})
        for override in (folder / "less").rglob("without_override.tf"):
            override.rename(root / override.relative_to(folder / "less"))
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
            "roles": len([each for each in client("iam", address).list_roles()["Roles"] if "hardcase" in each["RoleName"]]),
        }
    return Account(
        planned=dict(resources(planned["planned_values"]["root_module"])),
        applied=dict(resources(state["root_module"])),
        outputs={name: each["value"] for name, each in state["outputs"].items()},
        locks=locks,
        left=left,
    )


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
    need_terraform()
    with ThreadPoolExecutor(len(ENVS)) as pool:
        yield {env: pool.submit(cycle, env, tmp_path_factory.mktemp(env)) for env in ENVS}


@pytest.fixture(scope="module")
def account(cycles: dict[str, "Future[Account]"]) -> Callable[[str], Account]:
    return lambda env: cycles[env].result()


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
