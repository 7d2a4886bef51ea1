"""Values of the charts, against what the overlays make and the order of the docs."""

import json
import re

import yaml

from tests.support.manifests import HERE, NAMESPACES, REPOSITORY, of, one, title, values


def test_airflows_values_fit_what_the_overlays_make() -> None:
    airflow = values("airflow.yaml")
    accounts = {title(each) for each in of("prod", "ServiceAccount")}
    fetched = {e["metadata"]["name"] for e in of("prod", "ExternalSecret") if e["metadata"]["namespace"] == "airflow"}
    assert airflow["rbac"]["create"] is False
    assert airflow["allowPodLaunching"] is False
    assert re.fullmatch("sha256:[0-9a-f]{64}", airflow["images"]["airflow"]["digest"])
    assert {airflow["data"]["metadataSecretName"], airflow["fernetKeySecretName"], airflow["jwtSecretName"]} <= fetched
    for name in ("scheduler", "triggerer", "apiServer", "dagProcessor", "migrateDatabaseJob", "statsd"):
        part = airflow[name]
        assert part["serviceAccount"]["create"] is False
        assert f"ServiceAccount airflow/{part['serviceAccount']['name']}" in accounts
        assert {"requests", "limits"} == set(part["resources"])
        volumes = {volume["name"]: volume for volume in part.get("extraVolumes", [])}
        assert {volume["secret"]["secretName"] for volume in volumes.values() if "secret" in volume} <= fetched
        launches = part["serviceAccount"]["name"] == "airflow-launcher"
        assert launches == (name in ("scheduler", "triggerer")) == ("kubeflow-token" in volumes)
    contexts = airflow["securityContexts"]
    assert contexts["pod"]["runAsNonRoot"] is True
    assert contexts["containers"]["readOnlyRootFilesystem"] is True
    assert contexts["containers"]["capabilities"] == {"drop": ["ALL"]}
    connection = json.loads(airflow["env"][0]["value"])
    (mount,) = airflow["scheduler"]["extraVolumeMounts"]
    assert connection["extra"]["token_file"] == f"{mount['mountPath']}/token"
    assert connection["extra"]["namespace"] in NAMESPACES
    bucket = yaml.safe_load((HERE / "overlays" / "prod" / "places.yaml").read_text())["data"]["bucket"]
    assert airflow["config"]["logging"]["remote_base_log_folder"].startswith(f"s3://{bucket}/")


def test_kueues_values_hold_back_the_namespace_of_runs() -> None:
    settings = yaml.safe_load(values("kueue.yaml")["managerConfig"]["controllerManagerConfigYaml"])
    chosen = settings["managedJobsNamespaceSelector"]["matchLabels"]
    assert chosen.items() <= one("prod", "Namespace", "hardcase")["metadata"]["labels"].items()
    assert {"pod", "trainer.kubeflow.org/trainjob"} <= set(settings["integrations"]["frameworks"])


def test_pods_can_be_made_while_one_of_kueues_replicas_is_away() -> None:
    """Its webhook lets none through that it did not see."""
    manager = values("kueue.yaml")["controllerManager"]
    budget = manager["podDisruptionBudget"]
    assert budget["enabled"] is True
    assert manager["replicas"] > budget["minAvailable"] >= 1


def test_the_docs_apply_namespaces_before_they_diff_and_crds_before_what_needs_them() -> None:
    """`kubectl diff` fails where a namespace is missing, and Kueue's chart where ServiceMonitor is."""
    docs = (REPOSITORY / "docs" / "how-to" / "install-on-kubernetes.md").read_text()
    order = [
        "helm upgrade --install prometheus-operator-crds ",
        "helm upgrade --install kubeflow-trainer ",
        "helm upgrade --install kueue ",
        "kubectl apply --server-side -f infra/kubernetes/base/cluster/namespaces.yaml",
        "kubectl diff --server-side ",
        "kubectl apply --server-side -k infra/kubernetes/overlays/prod",
        "helm upgrade --install prometheus ",
    ]
    places = [docs.index(command) for command in order]
    assert places == sorted(places)
    made = yaml.safe_load_all((HERE / "base" / "cluster" / "namespaces.yaml").read_text())
    assert {each["metadata"]["name"] for each in made if each["kind"] == "Namespace"} == NAMESPACES
    assert values("prometheus.yaml")["crds"]["enabled"] is False
