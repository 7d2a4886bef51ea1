"""Who may what, in the cluster and in Kubeflow, whose server asks the cluster."""

import pytest

from tests.support.manifests import OVERLAYS, REPOSITORY, of, one, rendered, title


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rights_name_their_verbs_and_resources_and_read_no_secret(overlay: str) -> None:
    for role in of(overlay, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], title(role)
            assert not {"secrets", "pods/exec", "serviceaccounts/token"} & set(rule["resources"]), title(role)
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), title(role)
    assert not [each for each in rendered(overlay) if each["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    roles, accounts = ({title(each) for each in of(overlay, kind)} for kind in ("Role", "ServiceAccount"))
    for binding in of(overlay, "RoleBinding"):
        assert f"Role {binding['metadata']['namespace']}/{binding['roleRef']['name']}" in roles
        for subject in binding["subjects"]:
            assert f"ServiceAccount {subject['namespace']}/{subject['name']}" in accounts


# What the API server asks the cluster for (kubeflow/pipelines 2.17.0, backend/src/apiserver). Verbs: common/const.go:22
# Which for which resource, in server/: run_server.go:155-477, job_server.go:114-313, experiment_server.go:102-400 and
# pipeline_server.go:153-1239.
ASKED = {
    "pipelines": {"get", "list", "create", "update", "delete"},
    "experiments": {"get", "list", "create", "delete", "archive", "unarchive"},
    "runs": {
        "get",
        "list",
        "create",
        "delete",
        "archive",
        "unarchive",
        "retry",
        "terminate",
        "reportMetrics",
        "readArtifact",
    },
    "jobs": {"get", "list", "create", "delete", "enable", "disable"},
}


def kubeflow_rights(overlay: str, role: str) -> dict[str, set[str]]:
    return {
        resource: set(rule["verbs"])
        for rule in one(overlay, "Role", role)["rules"]
        if rule["apiGroups"] == ["pipelines.compile.org"]
        for resource in rule["resources"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("role", ["pipeline-runner", "run-launcher", "run-publisher", "run-viewer"])
def test_rights_in_kubeflow_are_such_that_its_server_asks_for(overlay: str, role: str) -> None:
    rights = kubeflow_rights(overlay, role)
    assert rights
    for resource, verbs in rights.items():
        assert verbs <= ASKED[resource], resource


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_those_who_deploy_retry_and_stop_runs_keep_a_schedule_and_see_reports(overlay: str) -> None:
    rights = kubeflow_rights(overlay, "run-publisher")
    assert {"create", "retry", "terminate"} <= rights["runs"]
    assert {"create", "enable", "disable", "delete"} <= rights["jobs"]
    assert "create" in rights["pipelines"]
    assert not {"delete", "archive"} & (rights["runs"] | rights["pipelines"])
    assert {"apiGroups": ["kubeflow.org"], "resources": ["viewers"], "verbs": ["get"]} in one(
        overlay, "Role", "run-publisher"
    )["rules"]


def test_no_right_is_given_or_offered_to_a_group() -> None:
    """The server's SubjectAccessReview names the user only (tests/recordings/kubeflow/forbidden-group-binding.json)."""
    for overlay in OVERLAYS:
        for binding in of(overlay, "RoleBinding"):
            assert {subject["kind"] for subject in binding["subjects"]} == {"ServiceAccount"}, title(binding)
    docs = (REPOSITORY / "docs" / "how-to" / "install-on-kubernetes.md").read_text()
    assert "--user=" in docs
    assert "--group" not in docs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_airflow_may_only_start_watch_and_stop_runs(overlay: str) -> None:
    bound = [
        one(overlay, "Role", binding["roleRef"]["name"])
        for binding in of(overlay, "RoleBinding")
        if any(subject["name"].startswith("airflow") for subject in binding["subjects"])
    ]
    rules = [rule for role in bound for rule in role["rules"]]
    assert {group for rule in rules for group in rule["apiGroups"]} == {"pipelines.compile.org"}
    verbs = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert verbs["runs"] == {"create", "get", "list", "terminate"}
    assert verbs["pipelines"] == {"get", "list"}
