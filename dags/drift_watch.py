"""Daily: does the champion still do on the newest labelled batch what it did when it was registered?

    choose ─┬─ kubeflow_run (deferred) ─┬─ result → publish → Asset drift_report
            └─ local_run ───────────────┘              └──── alarm → Asset drift_alarm, which starts `retraining`

The evaluation's own step `drift` decides. It compares with the evaluation by which the version was registered.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowSkipException
from hardcase_provider import forms
from hardcase_provider.alerts import alert_failure
from hardcase_provider.assets import DRIFT, DRIFT_REPORT, MODEL_NAME, schedule_at
from hardcase_provider.evaluation import plan_evaluation, run_evaluation

PARAMS = {
    "model": Param(
        f"{MODEL_NAME}@champion", type="string", pattern=r"^[A-Za-z0-9._-]+[@:][A-Za-z0-9._-]+$", title="Model"
    ),
    "batches": Param(
        os.environ.get("HARDCASE_BATCHES", "procedural://?samples=200&seed=11"),
        type="string",
        pattern=forms.ONE_SOURCE,
        title="Labelled batches",
        description="A folder of batches, of which the last by name is taken, or one source of samples with answers.",
    ),
    "settings": forms.settings("What differs from the configuration recorded with the version."),
    "engine": forms.engine(),
}


@task.branch
def choose(params: dict[str, Any]) -> str:
    """Find the newest batch."""
    from hardcase_provider.planning import newest_batch

    return plan_evaluation(params, params["model"], newest_batch(params["batches"]))


@task(outlets=[DRIFT_REPORT])
def publish(result: dict[str, Any], outlet_events: Any) -> dict[str, Any]:
    """Record in the Asset's event what the evaluation found."""
    outlet_events[DRIFT_REPORT].extra = result
    return result


@task(outlets=[DRIFT])
def alarm(params: dict[str, Any], result: dict[str, Any], outlet_events: Any) -> None:
    """Update the drift Asset, if there is reason to."""
    from hardcase_provider.alerts import alert

    drift = result["drift"] or {}
    if not drift.get("drifted"):
        raise AirflowSkipException("no drift")
    outlet_events[DRIFT].extra = result
    text = f"{result['model'] or params['model']} has drifted: {describe_changes(drift)}"
    alert("drift", text, dag="drift_watch", link=result["report"])


def describe_changes(drift: Mapping[str, Any]) -> str:
    """Return what changed, in one line."""
    tests = [(test["name"], test["reference"], test["current"]) for test in drift["tests"] if test["drifted"]]
    return "; ".join(f"{name} {_shorten(before)} → {_shorten(now)}" for name, before, now in tests)


def _shorten(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


with DAG(
    "drift_watch",
    description="Evaluate the champion on the newest labelled batch",
    schedule=schedule_at("0 5 * * *"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": alert_failure, "retries": 1, "retry_delay": timedelta(minutes=5)},
):
    alarm(result=publish(result=run_evaluation(choose())))
