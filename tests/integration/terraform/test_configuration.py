"""The configuration as it lies in the repository: its form, its promises by a mocked provider, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terraform.running import (
    MODULES,
    TERRAFORM,
    VALUES,
    copied,
    done,
    lacking,
    moto_server,
    need,
    terraform,
    values_file,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(lacking())
    return copied(tmp_path_factory.mktemp("terraform") / "terraform")


def test_files_are_laid_out_as_terraform_would() -> None:
    need(lacking())
    done(terraform(TERRAFORM, "fmt", "-check", "-recursive", "-diff"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_its_promises_and_refuses_what_is_wrong(root: Path, module: str) -> None:
    folder = root / "modules" / module
    done(terraform(folder, "init", "-input=false"))
    told = done(terraform(folder, "test"))
    passed = re.search(r"(\d+) passed, 0 failed", told)
    assert passed and int(passed[1]) > 0, told


@pytest.mark.parametrize("folder", ["bootstrap", "envs/dev", "envs/prod"])
def test_a_configuration_is_valid_with_the_locked_provider(root: Path, folder: str) -> None:
    done(terraform(root / folder, "init", "-input=false", "-backend=false", "-lockfile=readonly"))
    done(terraform(root / folder, "validate"))


def test_wrong_values_are_refused_at_plan_with_what_would_be_right(root: Path) -> None:
    env = root / "envs" / "prod"
    (env / "local_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
    done(terraform(env, "init", "-input=false", "-lockfile=readonly", "-reconfigure"))
    odd = {"instance_type": "p9.48xlarge", "zone": "eu-central-1a"}
    wrong = (
        {"vpc_cidr": "10.10.0.0/24", "monthly_budget": -5, "replica_region": "eu-central-1"},
        {"zones": ["eu-central-1a", "eu-central-1b", "eu-central-1d"]},
        {"gpu_node_groups": {"odd": odd}},
    )
    told = ""
    with moto_server() as address:
        for values in wrong:
            values_file(env, {**VALUES, **values})
            refused = terraform(env, "plan", "-input=false", AWS_ENDPOINT_URL=address)
            assert refused.returncode == 1, values
            told += " ".join(refused.stderr.split())
    for mending in (
        "give a private range from /16 to /20, such as 10.20.0.0/16",
        "monthly_budget: a number of dollars above 0",
        "another region than region",
        "eu-central-1d not in this region; take three of eu-central-1a, eu-central-1b, eu-central-1c",
        "p9.48xlarge is no GPU type known here; take one of g5.12xlarge",
    ):
        assert mending in told, f"{mending!r} is not said in:\n{told[-3000:]}"


def test_every_variable_has_a_type_and_a_description_and_every_output_too() -> None:
    for path in TERRAFORM.rglob("*.tf"):
        for kind, name, body in re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', path.read_text(), re.M | re.S):
            assert re.search(r"^  description\s+= ", body, re.M), f"{path}: {name}"
            assert kind == "output" or re.search(r"^  type\s+= ", body, re.M), f"{path}: {name}"


@pytest.mark.parametrize("script", ["describe.py", "cost.py"])
def test_what_is_generated_is_current(script: str) -> None:
    made = subprocess.run([sys.executable, TERRAFORM / script, "--check"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_no_account_no_key_and_no_secret_lies_in_the_files() -> None:
    looks = re.compile(r"-----BEGIN|AKIA[0-9A-Z]{16}|eyJ[A-Za-z0-9_-]{20}|arn:aws:[a-z]+:[a-z0-9-]*:\d{12}:")
    for path in TERRAFORM.rglob("*"):
        if path.is_file() and ".terraform" not in path.parts and "tests" not in path.parts:
            found = looks.search(path.read_text(errors="replace"))
            assert not found or "111122223333" in found[0], path


def test_what_cannot_be_run_is_said_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    need("")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT RUN: no provider"):
        need("no provider")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="NOT RUN: no provider"):
        need("no provider")
