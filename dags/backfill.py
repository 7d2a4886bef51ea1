"""Score a registered version again, on any source of samples with answers; only by hand."""

from typing import Any

from airflow.sdk import DAG, Param, task
from hardcase_provider.alerts import failed
from hardcase_provider.assets import EVALUATION, MODEL_NAME
from hardcase_provider.operators import LocalRunOperator

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
        pattern=r"^(procedural://|s3://|file:///|snapshot:|/)\S*$",
        title="Source",
        description="Samples with answers; snapshot:ID for one that is in the store.",
    ),
}


@task
def choose(params: dict[str, Any]) -> list[str]:
    """The version as `hardcase evaluate` takes it."""
    mark = ":" if params["version"].isdecimal() else "@"
    return ["evaluate", f"--model={MODEL_NAME}{mark}{params['version']}", f"--data={params['source']}"]


@task(outlets=[EVALUATION])
def publish(params: dict[str, Any], result: dict[str, Any], outlet_events: Any) -> None:
    """Say in the Asset's event how it scored."""
    facts = {name: result[name] for name in ("snapshot", "samples", "scores", "evaluation")}
    outlet_events[EVALUATION].extra = {"version": params["version"], "source": params["source"], **facts}


with DAG(
    "backfill",
    description="Score a registered version again on any source",
    schedule=None,
    params=PARAMS,
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": failed},
):
    evaluate = LocalRunOperator(task_id="evaluate", arguments=choose())
    publish(result=evaluate.output)
