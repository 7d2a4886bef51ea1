"""Our settings of Kubeflow Pipelines, on a stock installation of each kind, and what pods of KFP and Argo meet with us.

The stock objects are in `tests/integration/infra/kubeflow`, whose README names their sources.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.argo_expression import evaluate
from tests.support.manifests import HERE, OVERLAYS, REPOSITORY, Manifest, kustomize, of, one, rendered

STOCK = Path(__file__).parent / "kubeflow"
KINDS = ("multi-user", "single-user")
SETTINGS = HERE / "components" / "kubeflow"
PATCHES = yaml.safe_load((SETTINGS / "kustomization.yaml").read_text())["patches"]


def stock(kind: str) -> list[Manifest]:
    return list(yaml.safe_load_all((STOCK / f"{kind}.yaml").read_text()))


def named(manifests: Any, kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@pytest.fixture(params=KINDS)
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Manifest], tuple[Manifest, ...]]:
    """Put the component over a stock installation; the objects before and after."""
    (tmp_path / "stock.yaml").write_text((STOCK / f"{request.param}.yaml").read_text())
    components = [os.path.relpath(SETTINGS, tmp_path)]
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["stock.yaml"], "components": components})
    )
    return stock(request.param), kustomize(tmp_path)


def texts(manifests: Any) -> dict[str, Any]:
    """Argo's settings: each key is a text in YAML."""
    data = named(manifests, "ConfigMap", "workflow-controller-configmap")["data"]
    return {key: yaml.safe_load(text) for key, text in data.items()}


def variables(manifests: Any, name: str) -> dict[str, Any]:
    (container,) = named(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_a_log_that_cannot_be_uploaded_fails_no_step_and_all_else_of_argo_stays(installation: Any) -> None:
    before, after = map(texts, installation)
    assert before["artifactRepository"]["archiveLogs"] is True
    assert after["artifactRepository"] == before["artifactRepository"] | {"archiveLogs": False}
    assert after["executor"] == before["executor"]
    assert after.keys() == before.keys()
    stays, changed = (each["workflowDefaults"]["spec"] for each in (before, after))
    assert {**changed, "templateDefaults": None} == {**stays, "templateDefaults": None}
    assert changed["templateDefaults"].keys() == stays["templateDefaults"].keys() == {"retryStrategy"}


@pytest.mark.parametrize(
    ("message", "retried"),
    [
        ("main: Error (exit code 1): hardcase: failed: no space left on /scratch", True),
        ("main: Error (exit code 1): hardcase: refused: row 3 has no label", False),
        ("main: OOMKilled (exit code 137)", True),
        ("pod deleted", True),
        ("", False),  # of a layer
    ],
)
def test_what_may_pass_is_retried_and_layers_and_refused_inputs_are_not(
    installation: Any, message: str, retried: bool
) -> None:
    strategy = texts(installation[1])["workflowDefaults"]["spec"]["templateDefaults"]["retryStrategy"]
    assert {**strategy, "expression": ""} == {"limit": "3", "retryPolicy": "Always", "expression": ""}
    assert evaluate(strategy["expression"], {"lastRetry": {"message": message}}) is retried


def test_a_pod_costs_two_seconds_of_argos_and_no_variable_of_stock_is_lost(installation: Any) -> None:
    before, after = installation
    ours = {
        "workflow-controller": {"DEFAULT_REQUEUE_TIME": "2s"},
        "ml-pipeline": {"DEFAULTPIPELINERUNNERSERVICEACCOUNT": "pipeline-runner"},
        "ml-pipeline-ui": {
            "AWS_REGION": "eu-central-1",
            "AWS_S3_ENDPOINT": "s3.eu-central-1.amazonaws.com",
            "ARGO_ARCHIVE_LOGS": "false",
        },
    }
    for name, settings in ours.items():
        assert variables(after, name) == variables(before, name) | settings
    for old in before:
        new = named(after, old["kind"], old["metadata"]["name"])
        if old["kind"] == "Deployment":
            for each in (old, new):
                del each["spec"]["template"]["spec"]["containers"][0]["env"]
            assert new == old


@pytest.mark.parametrize("patch", [each["path"] for each in PATCHES])
@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_patch_makes_of_each_object_what_the_component_makes_of_it(
    kind: str, patch: str, tmp_path: Path
) -> None:
    """The docs offer both ways; `--local` patches a file as the cluster would its object."""
    wanted = yaml.safe_load((SETTINGS / patch).read_text())
    given = named(stock(kind), wanted["kind"], wanted["metadata"]["name"])
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl if kubectl.exists() else shutil.which("kubectl"), "patch", "--local", "-f"]
    command += [tmp_path / "given.yaml", "--patch-file", SETTINGS / patch, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "component"
    folder.mkdir()
    shutil.copy(SETTINGS / patch, folder)
    (folder / "given.yaml").write_text(yaml.safe_dump(given))
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["given.yaml"], "patches": [{"path": patch}]})
    )
    assert (json.loads(done.stdout),) == kustomize(folder)


def test_the_docs_patch_every_object_that_the_component_patches() -> None:
    docs = (REPOSITORY / "docs" / "how-to" / "install-on-kubernetes.md").read_text()
    for each in PATCHES:
        about = yaml.safe_load((SETTINGS / each["path"]).read_text())
        command = (
            f"kubectl -n {about['metadata']['namespace']} patch {about['kind'].lower()} {about['metadata']['name']} "
        )
        assert f"{command}--patch-file $settings/{each['path']}" in docs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ui_reads_in_the_region_of_the_overlays(overlay: str) -> None:
    patch = yaml.safe_load((SETTINGS / "ml-pipeline-ui.yaml").read_text())
    region = one(overlay, "ConfigMap", "hardcase-environment")["data"]["AWS_REGION"]
    assert variables([patch], "ml-pipeline-ui")["AWS_REGION"] == region


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_account_of_a_run_mounts_its_token(overlay: str) -> None:
    """Driver, launcher and Argo's executor need one, and nothing of KFP or Argo asks for it.

    Which accounts those are is said in three places: who may report to Argo, whom Airflow starts runs as, and whom the
    API server does.
    """
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"]): each.get("automountServiceAccountToken", True)
        for each in of(overlay, "ServiceAccount")
    }
    reporting = {
        (subject["namespace"], subject["name"])
        for binding in of(overlay, "RoleBinding")
        for rule in one(overlay, "Role", binding["roleRef"]["name"])["rules"]
        if "workflowtaskresults" in rule["resources"]
        for subject in binding["subjects"]
    }
    server = yaml.safe_load((SETTINGS / "ml-pipeline.yaml").read_text())
    airflow = yaml.safe_load((HERE / "helm" / "airflow.yaml").read_text())["env"]
    starting = {each["value"] for each in airflow if each["name"] == "HARDCASE_SERVICE_ACCOUNT"}
    starting.add(variables([server], "ml-pipeline")["DEFAULTPIPELINERUNNERSERVICEACCOUNT"])
    assert reporting == {("hardcase", name) for name in starting}, "who reports to Argo is not who runs are started as"
    for account in reporting:
        assert accounts[account] is True, f"{account}: every run would fail at its first pod"
    holders = {account for account, mounts in accounts.items() if mounts}
    assert holders == reporting, "a token for which nothing is known that needs it"


def test_a_single_user_installation_gets_what_steps_mount_in_kubeflows_own_namespace() -> None:
    local = rendered("local")
    assert {each["metadata"]["namespace"] for each in local} == {"kubeflow"}
    assert {(each["kind"], each["metadata"]["name"]) for each in local} == {
        ("ConfigMap", "hardcase-environment"),
        ("ConfigMap", "hardcase-trusted-keys"),
        ("PersistentVolumeClaim", "hardcase-scratch"),
    }
    data = named(local, "ConfigMap", "hardcase-environment")["data"]
    assert "awskms" not in data["HARDCASE_SIGNING_KEY"], "there is no KMS"
    assert "MLFLOW_TRACKING_URI" not in data, "there is no server"
    assert named(local, "PersistentVolumeClaim", "hardcase-scratch")["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "20Gi"}},
    }
