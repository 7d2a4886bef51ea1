"""The images as far as that can be said without building them: Dockerfile, locks, names and users."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hardcase.runtime.running import LIGHT_IMAGE, TRAIN_IMAGE
from tests.support.dockerfile import environment, stages

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "infra" / "images"
LOCKS = IMAGES / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = set((LOCKS / "heavy.txt").read_text(encoding="utf-8").split())
LIGHT = [text for text in PROJECT["dependencies"] if canonicalize_name(Requirement(text).name) not in HEAVY]
VLLM = PROJECT["optional-dependencies"]["vllm"]
TORCH = re.compile(r"^(torch|triton|nvidia-|cuda-)")


def pins(lock):
    """Version and number of hashes by name; a line that is neither a pin nor a hash of one fails."""
    found, name = {}, None
    for line in (LOCKS / f"{lock}.lock").read_text(encoding="utf-8").splitlines():
        if pin := re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^ ;]+)(?: ; .+)? \\", line):
            name = pin[1]
            found.setdefault(name, ({*()}, [0]))[0].add(pin[2])
        else:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line), f"{lock}.lock: {line}"
            found[name][1][0] += 1
    return {name: (versions, hashes[0]) for name, (versions, hashes) in found.items()}


def asked(name):
    lines = (LOCKS / f"{name}.in").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("locks", "requirements"),
    [
        (["build"], asked("build")),
        (["light"], LIGHT),
        (["train", "torch"], PROJECT["dependencies"]),
        (["vllm"], PROJECT["dependencies"] + VLLM),
        (["mlflow"], asked("mlflow")),
        (["airflow"], asked("airflow")),
    ],
    ids=lambda value: "+".join(value) if len(value) < 3 else "",
)
def test_locks_hold_what_is_asked_for_with_hashes(locks, requirements):
    found = {name: pin for lock in locks for name, pin in pins(lock).items()}
    assert all(hashes for _, hashes in found.values())
    for requirement in map(Requirement, requirements):
        versions, _ = found.get(canonicalize_name(requirement.name), ((), 0))
        assert versions, f"{requirement}: not in the lock; run `make image-locks`"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: run `make image-locks`"


def test_images_hold_the_versions_that_the_tests_ran_with():
    tested = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    for lock in ("light", "train", "mlflow"):
        for name, (versions, _) in pins(lock).items():
            if name in tested:
                assert versions == {tested[name]}, f"{lock}.lock: {name}; run `make image-locks`"
    assert not (set(pins("train")) - set(tested)) & HEAVY
    assert not set(pins("light")) & HEAVY
    airflow = (ROOT / "requirements-airflow.lock").read_text(encoding="utf-8")
    (version,) = pins("airflow")["apache-airflow"][0]
    assert f"\napache-airflow=={version} " in airflow


def test_no_lock_names_the_torch_of_one_machine():
    assert not [name for lock in ("light", "train", "mlflow", "airflow") for name in pins(lock) if TORCH.match(name)]
    assert all(TORCH.match(name) for name in pins("torch"))
    assert not [v for lock in ("torch", "vllm") for versions, _ in pins(lock).values() for v in versions if "+" in v]
    assert set(pins("light")) < set(pins("train"))


def test_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, "--no-color", IMAGES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_images_are_called_what_pipeline_and_manifests_call_them():
    recipes = subprocess.run(["make", "-n", "images"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tags = set(re.findall(r"--tag docker\.io/(\S+)", recipes))
    assert {LIGHT_IMAGE, TRAIN_IMAGE} < tags
    names = {tag.partition(":")[0] for tag in tags}
    for overlay in ("dev", "prod"):
        manifest = yaml.safe_load((ROOT / f"infra/kubernetes/overlays/{overlay}/kustomization.yaml").read_text())
        assert {image["newName"] for image in manifest["images"] if "hardcase/" in image["newName"]} <= names
    assert _values()["images"]["airflow"]["repository"] in names


def test_images_run_as_the_users_that_the_manifests_name():
    user = {image: stages()[image]["USER:"] for image in ("light", "train", "mlflow", "airflow")}
    for image, manifest in {"light": "monitoring/exporter.yaml", "mlflow": "mlflow/server.yaml"}.items():
        documents = yaml.safe_load_all((ROOT / "infra/kubernetes/base" / manifest).read_text(encoding="utf-8"))
        (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
        context = deployment["spec"]["template"]["spec"]["securityContext"]
        assert user[image] == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert user["train"] == user["light"]
    assert user["airflow"] == f"{_values()['uid']}:{_values()['gid']}"


def test_no_variable_is_both_the_images_and_the_environments_of_steps():
    # A step keeps a variable that is set already, so that a value in the ConfigMap would have no effect.
    text = (ROOT / "infra/kubernetes/base/steps/environment.yaml").read_text(encoding="utf-8")
    (steps,) = [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == "hardcase-environment"]
    for image in ("light", "train"):
        assert not set(environment(image)) & set(steps["data"])


def _values():
    return yaml.safe_load((ROOT / "infra/kubernetes/helm/airflow.yaml").read_text(encoding="utf-8"))


def test_bill_of_materials_names_what_the_distribution_installed():
    spec = importlib.util.spec_from_file_location("examine", IMAGES / "examine.py")
    examine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examine)
    status = """Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b13
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter.

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
    (bash,) = examine.read_debian(status, {"ID": "debian", "VERSION_ID": "12"})
    assert str(bash.purl) == "pkg:deb/debian/bash@5.2.15-2%2Bb13?arch=amd64&distro=debian-12"
