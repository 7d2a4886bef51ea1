"""Retrain when there is something new: weekly, when new data is announced, when drift alarms, or by hand.

    plan ─┬─ kubeflow_run (deferred) ─┬─ publish → Asset image_screener
          └─ local_run ───────────────┘

`plan` finds what the retraining would be made of (source, seed, profile, code). If the last one was made of the same,
all else is skipped; if not, this names the run, so that a doubled or retried trigger starts one.
"""

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    AssetOrTimeSchedule,
    AsyncCallback,
    DeadlineAlert,
    DeadlineReference,
    Param,
    TriggerRule,
    get_current_context,
    task,
)
from hardcase_provider import forms
from hardcase_provider.alerts import alert_failure, alert_lateness
from hardcase_provider.assets import DRIFT, MODEL, NEW_DATA, schedule_at
from hardcase_provider.operators import KubeflowRunOperator, LocalRunOperator

PIPELINE = os.environ.get("HARDCASE_PIPELINE", "hardcase-retraining")
WEEKLY = schedule_at(os.environ.get("HARDCASE_SCHEDULE", "0 3 * * 1"))
WITHIN = timedelta(minutes=int(os.environ.get("HARDCASE_DEADLINE_MINUTES", "1440")))
PACKAGE = os.environ.get("HARDCASE_PACKAGE", "")

PARAMS = {
    "profile": forms.profile("How to retrain."),
    "source": Param(
        None,
        type=["null", "string"],
        pattern=forms.SOURCE,
        maxLength=1024,
        title="Source of samples",
        description="A path or URI (file, s3, procedural, snapshot). Empty: what was announced, or the profile's.",
    ),
    "seed": Param(None, type=["null", "integer"], minimum=0, maximum=2**32 - 1, title="Seed", description="Optional."),
    "settings": forms.settings("What differs from the profile."),
    "engine": forms.engine(),
    "force": Param(False, type="boolean", title="Even if nothing is new", description="Start another run."),
}


@task.branch(inlets=[MODEL], retries=2)
def plan(params: dict[str, Any], run_id: str, ti: Any) -> str | None:
    """Find what is to be run, and whether it is anything new."""
    from hardcase_provider.hooks import KubeflowHook, choose_engine
    from hardcase_provider.planning import code_digest, fingerprint, source_digest

    context = get_current_context()
    announced = read_announcement(context["triggering_asset_events"])
    source = params["source"] or announced.get("source")
    engine = choose_engine(params["engine"])
    chosen = {"profile": params["profile"], "source": source, "seed": params["seed"]}
    parameters = {name: value for name, value in chosen.items() if value is not None}
    parameters |= {"settings": params["settings"]} if params["settings"] else {}
    holds = announced.get("digest") or source_digest(source, engine)
    code = code_digest()
    if engine == "kubeflow":
        code = KubeflowHook().version(PIPELINE, PACKAGE)["pipeline_version_id"]
    made_of = fingerprint(
        parameters=parameters,
        holds=run_id if holds is None else holds,  # unknown counts as new; the engine's cache decides
        code=code,
        again=run_id if params["force"] else "",
    )
    last: list[Any] = list(context["inlet_events"][MODEL].ascending(False).limit(1))
    if last and last[0].extra.get("fingerprint") == made_of:
        print(f"Nothing new: {parameters} was trained on already, version {last[0].extra.get('version')}.")
        return None
    ti.xcom_push(key="key", value=f"retraining-{made_of[:16]}")
    ti.xcom_push(key="fingerprint", value=made_of)
    ti.xcom_push(key="parameters", value=parameters)
    ti.xcom_push(key="arguments", value=["run", *forms.write_arguments(parameters)])
    return f"{engine}_run"


def read_announcement(events: Any) -> dict[str, Any]:
    """Return what the newest event of the data that started this run says of it."""
    announced = [event for asset, each in events.items() if asset.name == NEW_DATA.name for event in each]
    return dict(announced[-1].extra) if announced else {}


@task(outlets=[MODEL], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, retries=2)
def publish(ti: Any, outlet_events: Any) -> dict[str, Any]:
    """Record in the Asset's event what came of it."""
    from hardcase_provider.alerts import alert
    from hardcase_provider.registry import read_result

    facts = {"fingerprint": ti.xcom_pull(task_ids="plan", key="fingerprint"), **read_result(ti)}
    outlet_events[MODEL].extra = facts
    if facts["verdict"] == "rejected":
        alert("rejected", f"{facts['model']} was rejected by the gate", dag="retraining", link=facts["report"])
    return facts


with DAG(
    "retraining",
    description="Retrain the screener when there is something new",
    schedule=AssetOrTimeSchedule(timetable=WEEKLY, assets=(NEW_DATA | DRIFT)),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={
        "on_failure_callback": alert_failure,
        "retry_exponential_backoff": True,
        "retry_delay": timedelta(minutes=1),
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=WITHIN,
        callback=AsyncCallback(alert_lateness, kwargs={"dag": "retraining", "within": str(WITHIN)}),
    ),
):
    planned = plan()
    kubeflow_run = KubeflowRunOperator(
        task_id="kubeflow_run",
        key=planned["key"],
        pipeline=PIPELINE,
        parameters=planned["parameters"],
        package=PACKAGE,
        account=os.environ.get("HARDCASE_SERVICE_ACCOUNT", ""),
        poll=float(os.environ.get("HARDCASE_POLL_SECONDS", "30")),
        retries=2,
    )
    local_run = LocalRunOperator(task_id="local_run", arguments=planned["arguments"], retries=1)
    planned >> [kubeflow_run, local_run] >> publish()
