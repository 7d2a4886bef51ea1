"""What `hardcase launch` sends: a version when it changed, and one run for one key, or a schedule.

The conventions are those of Airflow's side (`dags/hardcase_provider/hooks.py`), so that both find each other's: a
version is named by its content, and a run by its key. A run of that name that goes on, or has succeeded, is the one; a
failed or cancelled one is followed by another.
"""

import json
import logging
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import kfp_server_api as api

from hardcase.errors import HardcaseError, InputError
from hardcase.kubeflow.client import ATTEMPTS, Client, Refused, Unreachable
from hardcase.kubeflow.package import Package, list_steps

logger = logging.getLogger(__name__)
GOING: Final = frozenset({None, "RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED"})
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
CRON: Final = set(string.ascii_letters + string.digits + "*/,-?")
PAGE: Final = 100
# Of a schedule, where none is said: recurring-create-no-account.json in tests/recordings/kubeflow; of an installation
# for one user, kubeflow/pipelines 2.17.0, backend/src/apiserver/template/template.go:319.
DEFAULT_ACCOUNTS: Final = {True: "default-editor", False: "pipeline-runner"}
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be launched.

    Attributes:
        package: the compiled pipeline.
        parameters: of the pipeline, typed.
        key: name of the run, or of the schedule: two keys, two runs.
        namespace: of the user; empty for an installation that has only one.
        experiment: name of the one that the run belongs to.
        service_account: of the run's pods; Kubeflow's default if empty.
        cron: when it is to run again and again, six fields; once, now, if empty.
        concurrency: how many runs of the schedule may go on at once.
    """

    package: Package
    parameters: Mapping[str, Any]
    key: str
    namespace: str
    experiment: str
    service_account: str = ""
    cron: str = ""
    concurrency: int = 1


@dataclass
class Launched:
    """What came of an order.

    Attributes:
        version: of the pipeline in Kubeflow.
        uploaded: whether it was not there.
        experiment: its id.
        run: the run; None for a schedule.
        started: whether it was not there.
        schedule: id of the recurring run.
        changed: whether the schedule was not there, or said something else.
    """

    version: api.V2beta1PipelineVersion
    uploaded: bool
    experiment: str
    run: api.V2beta1Run | None = None
    started: bool = False
    schedule: str = ""
    changed: bool = False


def cron_of(text: str) -> str:
    """Six fields for Kubeflow, whose cron begins with the second; five are taken as every cron takes them.

    Raises:
        InputError: neither five nor six.
    """
    fields = text.split()
    if len(fields) not in (5, 6) or not set("".join(fields)) <= CRON:
        raise InputError(f"--schedule {text!r}: not cron; say minute hour day month weekday, such as '0 3 * * 1'")
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def is_cancelled(run: api.V2beta1Run) -> bool:
    """Return whether somebody terminated the run.

    Such a run is CANCELING first and FAILED at its end (tests/recordings/kubeflow/run-terminated-final.json); one that
    was retried after that has a later RUNNING in its history.
    """
    if run.state == "SUCCEEDED":
        return False
    last = next((each.state for each in reversed(run.state_history or []) if each.state not in ENDED), None)
    return "CANCEL" in f"{run.state} {last}"


class Kubeflow:
    """Kubeflow Pipelines, by upstream's client.

    Args:
        client: how it is reached.
    """

    def __init__(self, client: Client) -> None:
        self._pause = client.address.pause
        self._runs = api.RunServiceApi(client)
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._experiments = api.ExperimentServiceApi(client)
        self._schedules = api.RecurringRunServiceApi(client)
        self._health = api.HealthzServiceApi(client)
        self._host = client.address.url

    def run(self, run_id: str) -> api.V2beta1Run:
        """A run as it is now."""
        return self._runs.run_service_get_run(run_id)

    def steps(self, run: api.V2beta1Run) -> dict[str, bool]:
        """Return the steps of a run's pipeline as `list_steps` does; none if Kubeflow has that version no more."""
        version = run.pipeline_version_reference
        if version is None:
            return {}
        try:
            found = self._pipelines.pipeline_service_get_pipeline_version(
                version.pipeline_id, version.pipeline_version_id
            )
        except Refused as error:
            if error.status not in (403, 404):
                raise
            return {}
        return list_steps(found.pipeline_spec)

    def terminate(self, run_id: str) -> None:
        """Stop a run; one that ended or is gone is left so."""
        try:
            self._runs.run_service_terminate_run(run_id)
        except Refused as error:
            if error.status not in (400, 404, 409):
                raise

    def launch(self, order: Order) -> Launched:
        """Carry an order out, however often it is asked for.

        Raises:
            InputError: the installation has no namespaces and the order names one, or the other way round.
        """
        several = self._check_namespace(order)
        version, uploaded = self._version(order)
        experiment, _ = self._found_or_made(
            lambda: self._first(
                self._experiments.experiment_service_list_experiments, "experiments", order.experiment, order
            ),
            lambda: self._experiments.experiment_service_create_experiment(
                api.V2beta1Experiment(display_name=order.experiment, namespace=order.namespace or None)
            ),
        )
        launched = Launched(version, uploaded, experiment.experiment_id)
        body = {
            "display_name": order.key,
            "experiment_id": experiment.experiment_id,
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(parameters=dict(order.parameters)),
            "service_account": order.service_account or None,
        }
        if order.cron:
            launched.schedule, launched.changed = self._scheduled(order, body, DEFAULT_ACCOUNTS[several])
        else:
            launched.run, launched.started = self._started(order, body)
        return launched

    def _check_namespace(self, order: Order) -> bool:
        """Return whether the installation is for several users."""
        several = self._health.healthz_service_get_healthz().multi_user
        if several is False and order.namespace:
            raise InputError(
                f"--namespace {order.namespace}: Kubeflow at {self._host} is installed for a single user and ignores "
                "it; the run would start in Kubeflow's own namespace, as its account; say --namespace ''"
            )
        if several and not order.namespace:
            raise InputError(f"Kubeflow at {self._host} is installed for several users; say --namespace NAME")
        return bool(several)

    def _version(self, order: Order) -> tuple[api.V2beta1PipelineVersion, bool]:
        package = order.package
        pipeline, _ = self._found_or_made(
            lambda: self._first(self._pipelines.pipeline_service_list_pipelines, "pipelines", package.name, order),
            lambda: self._pipelines.pipeline_service_create_pipeline(
                api.V2beta1Pipeline(
                    display_name=package.name,
                    name=package.name,
                    description=package.description,
                    namespace=order.namespace or None,
                )
            ),
        )
        listing = self._pipelines.pipeline_service_list_pipeline_versions
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_bytes(package.content)
            name = package.version
            return self._found_or_made(
                lambda: next(_all(listing, "pipeline_versions", pipeline.pipeline_id, filter=_named(name)), None),
                lambda: self._uploads.upload_pipeline_version(
                    str(file),
                    name=name,
                    display_name=name,
                    pipelineid=pipeline.pipeline_id,
                    description=package.description,
                ),
            )

    def _started(self, order: Order, body: Mapping[str, Any]) -> tuple[api.V2beta1Run, bool]:
        told = "Started by hardcase launch; its name is its idempotency key."
        made, started = self._found_or_made(
            lambda: self._chosen(order),
            lambda: self._runs.run_service_create_run(api.V2beta1Run(description=told, **body)),
        )
        if not started:
            return made, False
        # Two who looked at the same moment both found nothing: the elder's run stays.
        chosen = self._chosen(order) or made
        if chosen.run_id != made.run_id:
            logger.warning("run %s was started twice; stopping %s", chosen.run_id, made.run_id)
            self.terminate(made.run_id)
        return chosen, chosen.run_id == made.run_id

    def _chosen(self, order: Order) -> api.V2beta1Run | None:
        listing = self._runs.run_service_list_runs
        found = [
            run
            for run in _all(listing, "runs", namespace=order.namespace, filter=_named(order.key))
            if run.state in GOING | {"SUCCEEDED"} and run.storage_state != "ARCHIVED" and not is_cancelled(run)
        ]
        return min(found, key=lambda run: (run.created_at.timestamp(), run.run_id), default=None)

    def _scheduled(self, order: Order, body: Mapping[str, Any], account: str) -> tuple[str, bool]:
        """One recurring run of that name. The API cannot change one: another is made, and only then the old goes."""
        wanted = api.V2beta1RecurringRun(
            **body,
            description="Kept by hardcase launch, which knows it by its name.",
            mode="ENABLE",
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=order.cron)),
            max_concurrency=str(order.concurrency),
            no_catchup=True,
        )
        there = self._recurring(order)
        kept, changed = self._found_or_made(
            lambda: next((each for each in self._recurring(order) if _says(each, order) == _says(wanted, order)), None),
            lambda: self._schedules.recurring_run_service_create_recurring_run(wanted),
        )
        if kept.status == "DISABLED":
            self._schedules.recurring_run_service_enable_recurring_run(kept.recurring_run_id)
            changed = True
        for other in there:
            if other.recurring_run_id != kept.recurring_run_id:
                self._schedules.recurring_run_service_delete_recurring_run(other.recurring_run_id)
                changed = True
        return str(kept.recurring_run_id), changed

    def _recurring(self, order: Order) -> list[api.V2beta1RecurringRun]:
        listing = self._schedules.recurring_run_service_list_recurring_runs
        return list(_all(listing, "recurring_runs", namespace=order.namespace, filter=_named(order.key)))

    def _first(self, listing: Callable[..., Any], key: str, name: str, order: Order) -> Any:
        return next(_all(listing, key, namespace=order.namespace, filter=_named(name)), None)

    def _found_or_made(self, find: Callable[[], Made | None], make: Callable[[], Made]) -> tuple[Made, bool]:
        """A POST whose answer was lost, or that came second, is looked for before it is sent again."""
        problem: HardcaseError | None = None
        for attempt in range(ATTEMPTS):
            if (found := find()) is not None:
                return found, False
            try:
                return make(), True
            except Unreachable as error:
                problem = error
            except Refused as error:
                if error.status != 409:
                    raise
                problem = Unreachable(str(error))
            time.sleep(self._pause * 2**attempt)
        raise problem or AssertionError


def _says(schedule: api.V2beta1RecurringRun, order: Order) -> tuple[Any, ...]:
    """Return all of a schedule that an order decides.

    Kubeflow fills in a service account where none is ordered, `default-editor` or another, as it was installed
    (kubeflow/pipelines 2.17.0, backend/src/apiserver/template/template.go:319).
    """
    cron, version = schedule.trigger.cron_schedule, schedule.pipeline_version_reference
    given = schedule.runtime_config and schedule.runtime_config.parameters
    parameters = json.dumps(given or {}, sort_keys=True)
    return (
        cron and cron.cron,
        version and version.pipeline_version_id,
        parameters,
        schedule.experiment_id,
        order.service_account and schedule.service_account,
        str(schedule.max_concurrency),
        bool(schedule.no_catchup),
    )


def _named(name: str) -> str:
    """Return the filter of a listing by name.

    Kubeflow unescapes it once more (kubeflow/pipelines 2.17.0, backend/src/apiserver/server/list_request_util.go:143),
    so a name with `+` would not be found, and one with `%` would be refused.
    """
    return quote(json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}))


def _all(listing: Callable[..., Any], key: str, *arguments: str, **query: Any) -> Iterator[Any]:
    token = ""
    while True:
        page = listing(*arguments, page_size=PAGE, page_token=token, **query)
        yield from getattr(page, key) or []
        if not (token := page.next_page_token or ""):
            return
