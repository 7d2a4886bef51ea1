"""Score a registered version again, on any source of samples with answers; only by hand."""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from hardcase_provider import forms
from hardcase_provider.alerts import alert_failure
from hardcase_provider.assets import EVALUATION, MODEL_NAME
from hardcase_provider.evaluation import plan_evaluation, run_evaluation

PARAMS = {
    "version": Param(
        "champion",
        type="string",
        pattern=r"^([1-9][0-9]{0,8}|champion|challenger)$",
        title="Version",
        description="A number, champion or challenger.",
    ),
    "source": Param(
        "procedural://?samples=200&seed=11",
        type="string",
        pattern=forms.SOURCE,
        title="Source",
        description="Samples with answers, or several URIs with one space between; snapshot:ID for one in the store.",
    ),
    "settings": forms.settings("What differs from the configuration recorded with the version."),
    "engine": forms.engine(),
}


@task.branch
def choose(params: dict[str, Any]) -> str:
    """Name the version in full."""
    mark = ":" if params["version"].isdecimal() else "@"
    return plan_evaluation(params, f"{MODEL_NAME}{mark}{params['version']}", params["source"])


@task(outlets=[EVALUATION])
def publish(params: dict[str, Any], result: dict[str, Any], outlet_events: Any) -> None:
    """Record in the Asset's event how it scored."""
    outlet_events[EVALUATION].extra = {**result, "source": params["source"]}


with DAG(
    "backfill",
    description="Score a registered version again on any source",
    schedule=None,
    params=PARAMS,
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": alert_failure, "retries": 1, "retry_delay": timedelta(minutes=5)},
):
    publish(result=run_evaluation(choose()))
