"""Retrain when there is something new: weekly, when new data is announced, when drift alarms, or by hand.

    plan ─┬─ kubeflow_run (deferred) ─┬─ publish → Asset image_screener
          └─ local_run ───────────────┘

`plan` finds what the retraining would be made of (source, seed, profile, code). If the last one was made of the same,
all else is skipped; if not, this names the run, so that a doubled or retried trigger starts one.
"""

import os
from datetime import timedelta
from pathlib import Path
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
from hardcase_provider.alerts import failed, late
from hardcase_provider.assets import DRIFT, MODEL, MODEL_NAME, NEW_DATA, schedule_at
from hardcase_provider.operators import REPOSITORY, KubeflowRunOperator, LocalRunOperator

PIPELINE = os.environ.get("HARDCASE_PIPELINE", "hardcase-retraining")
WEEKLY = schedule_at(os.environ.get("HARDCASE_SCHEDULE", "0 3 * * 1"))
WITHIN = timedelta(minutes=int(os.environ.get("HARDCASE_DEADLINE_MINUTES", "1440")))
PACKAGE = os.environ.get("HARDCASE_PACKAGE", "")

PARAMS = {
    "profile": forms.profile("How to retrain: a configuration in profiles/."),
    "source": Param(
        None,
        type=["null", "string"],
        pattern=forms.SOURCE,
        maxLength=1024,
        title="Source of samples",
        description="A path or URI (file, s3, procedural, snapshot). Empty: what was announced, or the profile's.",
    ),
    "seed": Param(None, type=["null", "integer"], minimum=0, maximum=2**32 - 1, title="Seed", description="Optional."),
    "engine": forms.engine(),
    "force": Param(False, type="boolean", title="Even if nothing is new", description="Start another run."),
}


@task.branch(inlets=[MODEL], retries=2)
def plan(params: dict[str, Any], run_id: str, ti: Any) -> str | None:
    """Find what is to be run, and whether it is anything new."""
    from hardcase_provider.hooks import KubeflowHook, chosen_engine
    from hardcase_provider.planning import code_digest, fingerprint, source_digest

    context = get_current_context()
    announced = announcement(context["triggering_asset_events"])
    source = params["source"] or announced.get("source")
    engine = chosen_engine(params["engine"])
    chosen = {"profile": params["profile"], "source": source, "seed": params["seed"]}
    parameters = {name: value for name, value in chosen.items() if value is not None}
    holds = announced.get("digest") or source_digest(source, engine)
    code = code_digest(REPOSITORY)
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
    arguments = [f"--{name}={value}" for name, value in parameters.items()]
    ti.xcom_push(key="arguments", value=["run", *arguments])
    return f"{engine}_run"


def announcement(events: Any) -> dict[str, Any]:
    """What the newest event of the data that started this run says of it."""
    found = [event for asset, each in events.items() if asset.name == NEW_DATA.name for event in each]
    return dict(found[-1].extra) if found else {}


@task(outlets=[MODEL], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, retries=2)
def publish(ti: Any, outlet_events: Any) -> dict[str, Any]:
    """Say in the Asset's event what came of it."""
    from hardcase_provider.alerts import tell
    from hardcase_provider.registry import describe_registration

    facts = {"fingerprint": ti.xcom_pull(task_ids="plan", key="fingerprint")}
    if summary := ti.xcom_pull(task_ids="local_run"):
        gate, model = summary.get("gate") or {}, summary.get("model") or {}
        facts |= {"engine": "local", "run_id": summary["run_id"], "verdict": gate.get("verdict"), **_brief(summary)}
        facts |= {"version": model.get("version"), "digest": model.get("digest"), "reasons": gate.get("reasons")}
        facts |= {"report": Path(summary["report"]).as_uri() if summary.get("report") else None}
    else:
        run = ti.xcom_pull(task_ids="kubeflow_run")
        facts |= {"engine": "kubeflow", "run_id": run["run_id"], "report": run["link"], "run": run["link"]}
        facts |= describe_registration(run["run_id"])
    outlet_events[MODEL].extra = facts
    if facts.get("verdict") == "held":
        tell("held", f"{MODEL_NAME}:{facts['version']} was held by the gate", dag="retraining", link=facts["report"])
    return facts


def _brief(summary: dict[str, Any]) -> dict[str, Any]:
    scores = (summary.get("scores") or {}).get("grpo") or {}
    return {"scores": {name: scores[name] for name in ("overall", "exact_match", "intervals") if name in scores}}


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
        "on_failure_callback": failed,
        "retry_exponential_backoff": True,
        "retry_delay": timedelta(minutes=1),
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=WITHIN,
        callback=AsyncCallback(late, kwargs={"dag": "retraining", "within": str(WITHIN)}),
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
