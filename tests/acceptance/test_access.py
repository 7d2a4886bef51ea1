"""What a run needs of an installation: rights of the token, and settings as far as they can be seen.

Each check says in one line what is missing and how to mend it. Kubeflow asks for rights before it looks for what a
request names (kubeflow/pipelines 2.17.0, backend/src/apiserver/server/run_server.go:153-160 and job_server.go:111-120),
so a request that names nothing tries a right and leaves nothing.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from hardcase.kubeflow.address import Refused, Unreachable
from hardcase.kubeflow.launching import list_all
from tests.acceptance.installation import Installation

Seen = Callable[[str, object], None]
NOWHERE = "00000000-0000-0000-0000-000000000000"
DOCS = "docs/how-to/install-on-kubernetes.md"
COMPONENT = "infra/kubernetes/components/kubeflow"
CORE = "/api/v1/namespaces"
STEP = {"pods": 1, "requests.cpu": 1.5, "requests.memory": 4 << 30}  # of one step with a model, without GPUs
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS |= {f"{unit}i": 2.0 ** (10 * (power + 1)) for power, unit in enumerate("KMGTP")}


@contextmanager
def granted(right: str, *, nowhere: bool = False) -> Iterator[None]:
    """Say which right a refusal shows to be missing.

    Args:
        right: what the role must allow.
        nowhere: the request names what does not exist, so that any other refusal shows the right.
    """
    try:
        yield
    except Refused as error:
        if error.status == 403 or (error.status == 400 and "may not upload" in str(error)):
            pytest.fail(f"the token may not {right}: bind the Role run-publisher to its user ({DOCS}); {error}")
        if error.status == 401 or not nowhere:
            pytest.fail(f"could not {right}: {error}")
    except Unreachable as error:
        if not (nowhere and "HTTP 500" in str(error)):  # so says Kubeflow also of what is not there
            pytest.fail(f"could not {right}: {error}")


def test_api_answers_and_has_the_users_that_mode_says(installation: Installation, record_property: Seen) -> None:
    several = bool(installation.client.ask("GET", "healthz").get("multi_user"))
    record_property("seen", "several users" if several else "a single user")
    said = "multi" if several else "single"
    assert several == installation.several, f"the installation is not as MODE says: say MODE={said}"


def test_token_may_list_runs(installation: Installation, record_property: Seen) -> None:
    with granted("list runs"):
        runs = installation.client.run(list_all("runs", installation.client.address))
        record_property("seen", f"{len(runs)} runs in {installation.user_namespace or 'the installation'}")


@pytest.fixture(scope="module")
def experiment(installation: Installation) -> str:
    """The experiment of all runs."""
    with granted("create experiments"):
        wanted = {"display_name": installation.prefix, "namespace": installation.user_namespace}
        return str(installation.client.ask("POST", "experiments", body=wanted)["experiment_id"])
    raise AssertionError


def test_token_may_create_experiments(experiment: str, record_property: Seen) -> None:
    record_property("seen", experiment)


def test_token_may_upload_pipelines(installation: Installation, record_property: Seen) -> None:
    package = installation.package
    with granted("upload pipelines"):
        body = {"display_name": package.name, "name": package.name, "namespace": installation.user_namespace}
        pipeline = installation.client.ask("POST", "pipelines", body=body)
        query = {"name": f"{package.name}-probe", "pipelineid": pipeline["pipeline_id"]}
        files = {"uploadfile": ("probe.yaml", package.content, "application/yaml")}
        version = installation.client.ask("POST", "pipelines/upload_version", query=query, files=files)
    record_property("seen", f"version {version['display_name']}")


def of_nothing(installation: Installation, experiment: str) -> dict[str, Any]:
    """What a run and a schedule have in common, of a version that does not exist."""
    return {
        "display_name": f"{installation.prefix}-nothing",
        "experiment_id": experiment,
        "pipeline_version_reference": {"pipeline_id": NOWHERE, "pipeline_version_id": NOWHERE},
        "runtime_config": {"parameters": {}},
    }


def test_token_may_start_runs(installation: Installation, experiment: str, record_property: Seen) -> None:
    with granted("create runs", nowhere=True):
        installation.client.ask("POST", "runs", body=of_nothing(installation, experiment))
    record_property("seen", "a run of nothing is refused for that reason")


def test_token_may_keep_schedules(installation: Installation, experiment: str, record_property: Seen) -> None:
    when = {"mode": "DISABLE", "max_concurrency": "1", "trigger": {"cron_schedule": {"cron": "0 0 3 1 1 *"}}}
    with granted("create recurring runs (jobs)", nowhere=True):
        installation.client.ask("POST", "recurringruns", body={**of_nothing(installation, experiment), **when})
    record_property("seen", "a schedule of nothing is refused for that reason")


def test_ui_answers(installation: Installation, record_property: Seen) -> None:
    try:
        with urlopen(
            Request(f"{installation.ui.rstrip('/')}/", headers=installation.client.address.headers()), timeout=30
        ) as answer:
            page = answer.read(4096).lower()
    except OSError as error:
        pytest.fail(f"no UI at {installation.ui} ({error}), so links lead nowhere: say UI=URL of the start page")
    assert b"<html" in page or b"<!doctype" in page, f"{installation.ui} is no page: say UI=URL of the start page"
    record_property("seen", installation.ui)


def test_store_can_be_read(installation: Installation, record_property: Seen) -> None:
    record_property("seen", f"{len(installation.opened.list_names('runs'))} runs recorded in {installation.store}")


@pytest.fixture
def controller(installation: Installation) -> dict[str, Any]:
    """Argo's settings, each read as YAML."""
    data = installation.kubectl(f"{CORE}/kubeflow/configmaps/workflow-controller-configmap")["data"]
    return {name: yaml.safe_load(text) for name, text in data.items()}


def test_logs_are_archived_where_runs_may_write_or_nowhere(controller: dict[str, Any], record_property: Seen) -> None:
    places = controller.get("artifactRepository") or {}
    archived = bool(places.get("archiveLogs"))
    own = bool((places.get("s3") or {}).get("useSDKCreds"))
    record_property("seen", "into our bucket" if archived else "not archived")
    assert not archived or own, (
        "logs are archived with keys that the runs' namespace lacks, so its pods never start: "
        f"set archiveLogs: false in workflow-controller-configmap ({COMPONENT})"
    )


def test_steps_are_tried_again_and_layers_are_not(controller: dict[str, Any], record_property: Seen) -> None:
    defaults = (controller.get("workflowDefaults") or {}).get("spec", {}).get("templateDefaults", {})
    strategy = defaults.get("retryStrategy") or {}
    record_property("seen", json.dumps(strategy))
    expression = str(strategy.get("expression", "")).replace("'", '"')
    assert strategy.get("retryPolicy") == "Always" and 'lastRetry.message != ""' in expression, (
        "a container that fails is not tried again, or each layer multiplies the attempts: "
        f"set templateDefaults.retryStrategy in workflow-controller-configmap ({COMPONENT})"
    )
    assert "hardcase: refused" in expression, f"a refused input is tried again: set the expression of {COMPONENT}"


def test_argo_looks_at_a_workflow_every_two_seconds(requeue: str, record_property: Seen) -> None:
    record_property("seen", requeue or f"10 s a pod: set DEFAULT_REQUEUE_TIME of workflow-controller ({COMPONENT})")


def test_namespace_has_what_steps_mount(installation: Installation, record_property: Seen) -> None:
    place = f"{CORE}/{installation.pods_namespace}"
    account = installation.kubectl(f"{place}/serviceaccounts/pipeline-runner")
    assert account.get("automountServiceAccountToken") is not False, (
        "pipeline-runner mounts no token, so each run ends at its first pod: remove automountServiceAccountToken: false"
    )
    environment = installation.kubectl(f"{place}/configmaps/hardcase-environment")["data"]
    installation.kubectl(f"{place}/persistentvolumeclaims/hardcase-scratch")
    store = environment.get("HARDCASE_STORE", "")
    record_property("seen", f"account, environment and scratch volume; store {store}")
    assert installation.store in ("", store), f"steps write to {store}, STORE says {installation.store}: name one store"


def test_quota_has_room_for_a_step(installation: Installation, record_property: Seen) -> None:
    quotas = installation.kubectl(f"{CORE}/{installation.pods_namespace}/resourcequotas").get("items") or []
    full = []
    for quota in quotas:
        hard, used = quota["status"].get("hard", {}), quota["status"].get("used", {})
        for resource, need in STEP.items():
            if resource in hard and amount(used.get(resource, "0")) + need > amount(hard[resource]):
                full.append(f"{resource}: {used.get(resource)} of {hard[resource]} used")
    record_property("seen", f"{len(quotas)} quotas" if quotas else "no quota")
    assert not full, f"the next step stays Pending ({'; '.join(full)}): delete what is not needed, or raise the quota"


def amount(text: str) -> float:
    """Return an amount of Kubernetes."""
    number = str(text).rstrip("".join(set("".join(UNITS))))
    return float(number) * UNITS[str(text)[len(number) :]]
