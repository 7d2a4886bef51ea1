"""Terraform as a user runs it, without the network: the provider from this machine, AWS from moto on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

REPOSITORY = Path(__file__).parents[3]
TERRAFORM = REPOSITORY / "infra" / "terraform"
MODULES = sorted(path.name for path in (TERRAFORM / "modules").iterdir())
ENVS = ("dev", "prod")
PROVIDER = "registry.terraform.io/hashicorp/aws"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "eu-central-1"}
VALUES = {
    "admin_role_arns": ["arn:aws:iam::123456789012:role/platform-admin"],
    "emails": ["alarms@example.com"],
    "sources": ["s3://acme-pictures/labelled"],
    "ci_subjects": ["repo:acme/hardcase:ref:refs/heads/main"],
}
# moto 5.2.5 knows no call for these, or answers one that the provider waits for with an error. Left out of what is
# applied, by override files in a copy; the plan has them, and is asserted on.
UNKNOWN_TO_MOTO = {
    "cluster": {
        "aws_eks_addon.early": "for_each = {}",
        "aws_eks_addon.late": "for_each = {}",
        "aws_eks_access_entry.admin": "for_each = {}",
        "aws_eks_access_policy_association.admin": "for_each = {}",
        "aws_eks_access_entry.karpenter_nodes": "count = 0",
        "aws_eks_pod_identity_association.karpenter": "count = 0",
    },
    "identity": {"aws_eks_pod_identity_association.workload": "for_each = {}"},
    "observability": {
        "aws_budgets_budget.this": "for_each = {}",
        "aws_ce_anomaly_monitor.this": "count = 0",
        "aws_ce_anomaly_subscription.this": "count = 0\nmonitor_arn_list = []",
    },
    "files": {"aws_efs_backup_policy.this": "count = 0", "aws_efs_file_system_policy.this": "count = 0"},
}
# The provider waits a minute for each to settle: once, in prod, is enough.
SLOW = {
    "artifacts": {
        "aws_s3_bucket_lifecycle_configuration.data": "count = 0",
        "aws_s3_bucket_lifecycle_configuration.access_logs": "count = 0",
    },
}
# Also: moto reads no conditions in a bucket's policy, so that "no access without TLS" would be no access.
BOOTSTRAP = {
    "state": {"aws_s3_bucket_lifecycle_configuration.this": "count = 0", "aws_s3_bucket_policy.this": "count = 0"},
}


def mirror() -> Path | None:
    """A folder of providers as `terraform providers mirror` lays one out: named, or where such things are put."""
    if named := os.environ.get("HARDCASE_TERRAFORM_MIRROR"):
        return Path(named)
    home = Path.home()
    usual = [home / ".terraform.d/plugins", home / ".local/share/terraform/plugins"]
    for share in (Path("/usr/local/share"), Path("/usr/share"), Path("/opt")):
        usual += [share / "terraform/plugins", *sorted(share.glob("*"))]
    return next((place for place in usual if (place / PROVIDER).is_dir()), None)


@cache
def environment() -> dict[str, str]:
    """Nothing of this machine's own accounts, and the mirror if there is one; else its own CLI configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "TF_"))}
    config = os.environ.get("TF_CLI_CONFIG_FILE", "")
    if found := mirror():
        file = Path(tempfile.mkdtemp(prefix="terraform-")) / "terraform.rc"
        file.write_text(f'provider_installation {{\n  filesystem_mirror {{ path = "{found}" }}\n}}\n')
        config = str(file)
    kept |= {"TF_CLI_CONFIG_FILE": config} if Path(config).is_file() else {}
    return {**kept, **KEYS, "AWS_EC2_METADATA_DISABLED": "true", "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}


def terraform(folder: Path, *arguments: str, timeout: float = 900, **more: str) -> subprocess.CompletedProcess[str]:
    """One command; a failure is the caller's to look at."""
    return subprocess.run(
        ["terraform", f"-chdir={folder}", *arguments, "-no-color"],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**environment(), **more},
    )


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout


@cache
def lacking() -> str:
    """Why Terraform cannot be run here; empty if it can."""
    if not shutil.which("terraform"):
        return "there is no terraform 1.11 or newer; install it"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(TERRAFORM / "modules" / "keys" / "versions.tf", folder)
        tried = terraform(Path(folder), "init", "-input=false")
    return (
        ""
        if tried.returncode == 0
        else (
            "the AWS provider cannot be had; name a folder that `terraform providers mirror` filled by "
            f"HARDCASE_TERRAFORM_MIRROR: {tried.stderr.strip()[-300:]}"
        )
    )


def need(lacking: str) -> None:
    """Say aloud that what follows is not run, if anything is lacking; in CI that is a failure."""
    if lacking:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NOT RUN: {lacking}")


def copied(to: Path) -> Path:
    """A copy of infra/terraform to run in; what moto cannot answer fails there at once, not after 25 retries."""
    root = Path(shutil.copytree(TERRAFORM, to, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*")))
    quick = 'provider "aws" {\n  max_retries = 2\n}\n'
    (root / "bootstrap" / "quick_override.tf").write_text(quick)
    for env in ENVS:
        (root / "envs" / env / "quick_override.tf").write_text(quick + quick.replace("{\n", '{\n  alias = "replica"\n'))
    return root


def leave_out(root: Path, name: str, modules: dict[str, dict[str, str]]) -> None:
    """Make none of the resources named, by override files, which Terraform merges into the modules."""
    for module, resources in modules.items():
        blocks = []
        for address, body in resources.items():
            kind, label = address.split(".")
            blocks.append(f'resource "{kind}" "{label}" {{\n{body}\n}}\n')
        (root / "modules" / module / f"{name}_override.tf").write_text("".join(blocks))


def values_file(folder: Path, values: dict[str, Any]) -> None:
    (folder / "terraform.tfvars.json").write_text(json.dumps(values))


def checkov(*arguments: str | Path) -> dict[str, Any]:
    """What checkov says of files or of a plan; it has an environment of its own."""
    own = REPOSITORY / ".venv-checkov" / "bin" / "checkov"
    need("" if own.exists() else "there is no checkov; make .venv-checkov/.ready")
    told = subprocess.run(
        [own, "--config-file", TERRAFORM / ".checkov.yaml", "--skip-download", "--output=json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in environment().items() if not key.startswith("AWS_")},
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@contextmanager
def moto_server() -> Iterator[str]:
    """AWS in a process of its own, for as long as this lasts; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    urlopen(f"{address}/moto-api/").close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait()
