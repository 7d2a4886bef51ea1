"""The manifests of infra/kubernetes, rendered by kustomize as `kubectl apply -k` would, and what must hold in them.

Kinds of Kubernetes itself are checked against its own schemas; those of operators against the fields that we use, as
their documentation has them (`SHAPES`).
"""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import HERE, NAMESPACES, OVERLAYS, containers, of, one, pods, rendered, title

KUBERNETES = "1.34"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
REMOTE = {"remoteRef": {"key": str, "property": str}, "secretKey": str}
FLAVOR = {"name": str, "resources": [{"name": str, "nominalQuota": (int, str)}]}
EBS = {
    "volumeType": str,
    "volumeSize": str,
    "encrypted": bool,
    "deleteOnTermination": bool,
    "iops": int,
    "throughput": int,
}
# Fields of operators' kinds that are in use, by type. What is not named here is a mistake, or to be looked up first.
SHAPES: dict[tuple[str, str], dict[str, Any]] = {
    ("karpenter.sh/v1", "NodePool"): {
        "weight": int,
        "limits": dict,
        "disruption": {
            "consolidationPolicy": str,
            "consolidateAfter": str,
            "budgets": [{"nodes": str, "reasons": [str]}],
        },
        "template": {
            "metadata": {"labels": dict},
            "spec": {
                "nodeClassRef": {"group": str, "kind": str, "name": str},
                "taints": [{"key": str, "value": str, "effect": str}],
                "requirements": [{"key": str, "operator": str, "values": [str]}],
                "expireAfter": str,
                "terminationGracePeriod": str,
            },
        },
    },
    ("karpenter.k8s.aws/v1", "EC2NodeClass"): {
        "amiSelectorTerms": [{"alias": str}],
        "role": str,
        "subnetSelectorTerms": [{"tags": dict}],
        "securityGroupSelectorTerms": [{"tags": dict}],
        "metadataOptions": {
            "httpEndpoint": str,
            "httpTokens": str,
            "httpPutResponseHopLimit": int,
            "httpProtocolIPv6": str,
        },
        "blockDeviceMappings": [{"deviceName": str, "ebs": EBS}],
        "instanceStorePolicy": str,
        "tags": dict,
    },
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): {
        "nodeLabels": dict,
        "tolerations": [{"key": str, "operator": str, "effect": str}],
    },
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): {
        "namespaceSelector": {"matchLabels": dict},
        "queueingStrategy": str,
        "preemption": {"withinClusterQueue": str},
        "resourceGroups": [{"coveredResources": [str], "flavors": [FLAVOR]}],
    },
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {"clusterQueue": str},
    # Its pods are checked in tests/integration/runtime/test_trainjob.py.
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): {
        "mlPolicy": {"numNodes": int, "torch": dict},
        "template": {"spec": {"replicatedJobs": [{"name": str, "template": dict}]}},
    },
    ("external-secrets.io/v1", "SecretStore"): {"provider": {"aws": {"service": str, "region": str}}},
    ("external-secrets.io/v1", "ExternalSecret"): {
        "refreshInterval": str,
        "secretStoreRef": {"kind": str, "name": str},
        "target": {"name": str, "creationPolicy": str},
        "data": [REMOTE],
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "groups": [
            {
                "name": str,
                "interval": str,
                "rules": [{"record": str, "alert": str, "expr": str, "for": str, "labels": dict, "annotations": dict}],
            }
        ]
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "selector": {"matchLabels": dict},
        "podMetricsEndpoints": [{"port": str, "interval": str, "scrapeTimeout": str}],
    },
}
# It has no spec.
SHAPELESS = {("kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass")}


def misfit(value: Any, shape: Any, at: str = "spec") -> str:
    """The first place where a value is not of that shape; empty if there is none."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at}: no list"
        return next(filter(None, (misfit(each, shape[0], f"{at}[{n}]") for n, each in enumerate(value))), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{at}: no object"
        if unknown := set(value) - set(shape):
            return f"{at}: {sorted(unknown)} not known"
        return next(filter(None, (misfit(each, shape[key], f"{at}.{key}") for key, each in value.items())), "")
    return "" if isinstance(value, shape) else f"{at}: {value!r} is no {shape}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_fits_its_schema(overlay: str) -> None:
    by_schema = 0
    for manifest in rendered(overlay):
        kind = (manifest["apiVersion"], manifest["kind"])
        if kind in SHAPES:
            assert not misfit(manifest["spec"], SHAPES[kind]), title(manifest)
        elif kind not in SHAPELESS:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            by_schema += 1
    assert by_schema > 50


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_two_manifests_are_one_object_and_all_lie_in_our_namespaces(overlay: str) -> None:
    named = [(each["apiVersion"], title(each)) for each in rendered(overlay)]
    assert len(named) == len(set(named))
    assert {each["metadata"].get("namespace") for each in rendered(overlay)} - {None} == NAMESPACES
    assert {each["metadata"]["name"] for each in of(overlay, "Namespace")} == NAMESPACES


def test_a_field_that_an_operator_does_not_know_is_found() -> None:
    shape = SHAPES["karpenter.sh/v1", "NodePool"]
    assert misfit({"limit": {"nvidia.com/gpu": 8}}, shape) == "spec: ['limit'] not known"
    assert misfit({"disruption": {"budgets": [{"nodes": 1}]}}, shape).startswith("spec.disruption.budgets[0].nodes")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_namespaces_admit_only_restricted_pods(overlay: str) -> None:
    for namespace in of(overlay, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_run_locked_down_with_requests_and_limits(overlay: str) -> None:
    for name, container in containers(overlay):
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        for bound in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][bound]), name
        assert {"readinessProbe", "livenessProbe"} <= set(container), name
    for name, _, template in pods(overlay):
        security = template["spec"]["securityContext"]
        assert security["runAsUser"] >= 10000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned_by_digest(overlay: str) -> None:
    for name, container in containers(overlay):
        assert DIGEST.search(container["image"]), f"{name}: {container['image']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_namespace_denies_by_default_and_has_bounds(overlay: str) -> None:
    denying = {
        each["metadata"]["namespace"]
        for each in of(overlay, "NetworkPolicy")
        if each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    assert denying == NAMESPACES
    for kind in ("ResourceQuota", "LimitRange"):
        assert {each["metadata"]["namespace"] for each in of(overlay, kind)} == NAMESPACES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_quota_counts_is_filled_in_for_containers_that_do_not_say(overlay: str) -> None:
    """The cluster refuses a pod that leaves out what the quota of its namespace counts."""
    given = {each["metadata"]["namespace"]: each["spec"]["limits"][0] for each in of(overlay, "LimitRange")}
    for quota in of(overlay, "ResourceQuota"):
        defaults = given[quota["metadata"]["namespace"]]
        for bound, default in (("requests", "defaultRequest"), ("limits", "default")):
            counted = {key.partition(".")[2] for key in quota["spec"]["hard"] if key.startswith(f"{bound}.")}
            assert counted - {"storage", "nvidia.com/gpu"} <= set(defaults[default]), title(quota)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_open_named_ports_only_and_never_the_metadata_of_nodes(overlay: str) -> None:
    within = {("monitoring", "inside"), ("hardcase", "training-on-several-nodes")}
    for policy in of(overlay, "NetworkPolicy"):
        about, spec = policy["metadata"], policy["spec"]
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            peers = rule.get("to") or rule.get("from")
            assert peers, title(policy)
            if (about["namespace"], about["name"]) not in within:
                assert rule["ports"], title(policy)
            for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
                if block["cidr"] == "0.0.0.0/0":
                    assert block["except"] == ["169.254.0.0/16"], title(policy)
                    assert [port["port"] for port in rule["ports"]] == [443], title(policy)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_find_hosts_through_coredns_and_through_a_cache_on_the_node(overlay: str) -> None:
    """NodeLocal DNSCache runs in the node's network, where no selector of pods matches it."""
    for namespace in NAMESPACES:
        (policy,) = (
            each["spec"]
            for each in of(overlay, "NetworkPolicy")
            if (each["metadata"]["namespace"], each["metadata"]["name"]) == (namespace, "dns")
        )
        assert policy["podSelector"] == {}, "for every pod"
        (rule,) = policy["egress"]
        assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {(53, "UDP"), (53, "TCP")}
        blocks = {peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer}
        assert blocks == {"169.254.20.10/32", "172.20.0.10/32"}, namespace


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_listens_is_reached_by_a_policy_of_its_namespace(overlay: str) -> None:
    """A policy whose selector matches no pod opens nothing, and nobody notices until it is needed."""
    ours = {"mlflow": {"mlflow", "postgres"}, "monitoring": {"run-exporter"}}
    there: dict[str, list[dict[str, str]]] = {}
    for _, namespace, template in pods(overlay):
        there.setdefault(namespace, []).append(template["metadata"]["labels"])
    for policy in of(overlay, "NetworkPolicy"):
        namespace, labels = policy["metadata"]["namespace"], policy["spec"]["podSelector"].get("matchLabels", {})
        if labels.get("app.kubernetes.io/name") in ours.get(namespace, set()):
            assert any(labels.items() <= each.items() for each in there[namespace]), title(policy)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_lies_in_the_repository_and_each_that_is_used_is_fetched(overlay: str) -> None:
    assert not [each for each in rendered(overlay) if each["kind"] == "Secret"]
    fetched = {
        (each["metadata"]["namespace"], each["spec"]["target"]["name"]) for each in of(overlay, "ExternalSecret")
    }
    stores = {each["metadata"]["namespace"] for each in of(overlay, "SecretStore")}
    assert {namespace for namespace, _ in fetched} <= stores
    for name, namespace, template in pods(overlay):
        used = {v["secret"]["secretName"] for v in template["spec"].get("volumes", []) if "secret" in v}
        assert {(namespace, secret) for secret in used} <= fetched, name
    for name, container in containers(overlay):
        for variable in container.get("env", []):
            if re.search("PASSWORD|SECRET|TOKEN|KEY", variable["name"]):
                assert variable["value"].startswith("/"), f"{name}: {variable['name']} is not the place of a file"


def test_no_file_holds_what_looks_like_a_secret() -> None:
    looks = re.compile(r"-----BEGIN|AKIA[0-9A-Z]{16}|://[^/\s:@]+:[^/\s@]+@|eyJ[A-Za-z0-9_-]{20}|xox[bp]-")
    for path in HERE.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":  # the exporter is imported from there by tests
            assert not looks.search(path.read_text()), path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_find_the_accounts_priorities_and_maps_that_they_name(overlay: str) -> None:
    accounts = {title(each) for each in of(overlay, "ServiceAccount")}
    maps = {title(each) for each in of(overlay, "ConfigMap")}
    priorities = {each["metadata"]["name"] for each in of(overlay, "PriorityClass")}
    for name, namespace, template in pods(overlay):
        spec = template["spec"]
        assert f"ServiceAccount {namespace}/{spec['serviceAccountName']}" in accounts, name
        assert spec["priorityClassName"] in priorities, name
        wanted = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
        wanted |= {source["configMapRef"]["name"] for each in spec["containers"] for source in each.get("envFrom", [])}
        assert {f"ConfigMap {namespace}/{each}" for each in wanted} <= maps, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_and_services_select_pods_that_exist(overlay: str) -> None:
    for each in of(overlay, "PodDisruptionBudget", "Service", "PodMonitor"):
        selector = each["spec"]["selector"]
        labels = selector if each["kind"] == "Service" else selector["matchLabels"]
        namespace = each["metadata"]["namespace"]
        matching = [
            t for _, n, t in pods(overlay) if n == namespace and labels.items() <= t["metadata"]["labels"].items()
        ]
        ours = namespace != "airflow"  # whose pods are the chart's, so labelled
        assert len(matching) == 1 if ours else set(labels) == {"component", "release"}, title(each)
    replicas = one("prod", "Deployment", "mlflow")["spec"]["replicas"]
    assert replicas > one("prod", "PodDisruptionBudget", "mlflow")["spec"]["maxUnavailable"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gpu_nodes_are_tainted_limited_and_go_when_idle(overlay: str) -> None:
    classes = {each["metadata"]["name"] for each in of(overlay, "EC2NodeClass")}
    pools = {each["metadata"]["name"]: each["spec"] for each in of(overlay, "NodePool")}
    for name, pool in pools.items():
        assert pool["limits"], name
        assert pool["template"]["spec"]["nodeClassRef"]["name"] in classes, name
        if name.startswith("gpu"):
            assert set(pool["limits"]) == {"nvidia.com/gpu"}, name
            assert [taint["key"] for taint in pool["template"]["spec"]["taints"]] == ["nvidia.com/gpu"], name
            assert pool["disruption"]["consolidationPolicy"] == "WhenEmpty", name
            assert {"nodes": "0", "reasons": ["Drifted", "Underutilized"]} in pool["disruption"]["budgets"], name
    for each in of(overlay, "EC2NodeClass"):
        assert each["spec"]["metadataOptions"]["httpTokens"] == "required"
        assert each["spec"]["metadataOptions"]["httpPutResponseHopLimit"] == 1
        assert all(disk["ebs"]["encrypted"] for disk in each["spec"]["blockDeviceMappings"])
    kinds: dict[str, dict[str, int]] = {}
    for pool in pools.values():
        if memory := pool["template"].get("metadata", {}).get("labels", {}).get("hardcase.io/gpu-memory"):
            (capacity,) = [
                r["values"] for r in pool["template"]["spec"]["requirements"] if r["key"].endswith("capacity-type")
            ]
            kinds.setdefault(memory, {})[capacity[0]] = pool["weight"]
    assert kinds
    for memory, weights in kinds.items():
        assert weights["spot"] > weights["on-demand"], (
            f"{memory}: spot comes first, and on-demand is there to fall back on"
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_queues_lead_to_flavors_whose_nodes_some_pool_makes(overlay: str) -> None:
    pools = [each["spec"] for each in of(overlay, "NodePool")]
    flavors = {each["metadata"]["name"]: each["spec"] for each in of(overlay, "ResourceFlavor")}
    queue = one(overlay, "ClusterQueue", "hardcase-gpu")
    for local in of(overlay, "LocalQueue"):
        assert local["spec"]["clusterQueue"] == "hardcase-gpu"
    (group,) = queue["spec"]["resourceGroups"]
    assert {each["name"] for each in group["flavors"]} == set(flavors)
    waiting = 0
    for flavor in group["flavors"]:
        assert [each["name"] for each in flavor["resources"]] == group["coveredResources"]
        labels, gpus = flavors[flavor["name"]]["nodeLabels"], flavor["resources"][-1]["nominalQuota"]
        fitting = [p for p in pools if labels.items() <= p["template"].get("metadata", {}).get("labels", {}).items()]
        assert fitting
        assert sum(pool["limits"].get("nvidia.com/gpu", 0) for pool in fitting) >= gpus, flavor["name"]
        waiting += gpus
    quota = one(overlay, "ResourceQuota", "runs")["spec"]["hard"]
    assert int(quota["requests.nvidia.com/gpu"]) >= 2 * waiting, "pods that wait in the queue count in the quota too"


def test_production_signs_by_kms_and_development_by_a_key_of_its_own() -> None:
    signing = {o: one(o, "ConfigMap", "hardcase-environment")["data"]["HARDCASE_SIGNING_KEY"] for o in OVERLAYS}
    assert signing == {"prod": "awskms:alias/hardcase-signing", "dev": "/var/run/secrets/hardcase/signing.pem"}
    fetched = {overlay: {each["metadata"]["name"] for each in of(overlay, "ExternalSecret")} for overlay in OVERLAYS}
    assert "hardcase-signing" in fetched["dev"]
    assert "hardcase-signing" not in fetched["prod"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_places_are_those_of_the_overlay_everywhere(overlay: str) -> None:
    places = yaml.safe_load((HERE / "overlays" / overlay / "places.yaml").read_text())["data"]
    text = yaml.safe_dump_all(rendered(overlay))
    assert set(re.findall(r"s3://([^/\s]+)", text)) == {places["bucket"]}
    assert set(re.findall(r"10\.\d+\.\d+\.\d+/\d+", text)) == {places["vpc"]}
    assert set(re.findall(r"region: (\S+)", text)) == {places["region"]}
