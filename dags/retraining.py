"""Retrain when there is something new: weekly, when new data is announced, when drift alarms, or by hand.

    plan ─┬─ kubeflow_run (deferred) ─┬─ publish → Asset image_screener
          └─ local_run ───────────────┴─ follow → Asset pending_data, which starts the next run

`plan` takes all announced data that was not trained on, and finds what the retraining would be made of (sources, seed,
profile, code). If the last one was made of the same, all else is skipped; if not, this names the run, so that a doubled
or retried trigger starts one. `publish` records what was trained on. `follow` looks whether more was announced since.
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
    task,
)
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from hardcase_provider import announcements, forms
from hardcase_provider.alerts import alert_failure, alert_lateness
from hardcase_provider.assets import DRIFT, MODEL, NEW_DATA, PENDING, schedule_at
from hardcase_provider.operators import KubeflowRunOperator, LocalRunOperator

PIPELINE = os.environ.get("HARDCASE_PIPELINE", "hardcase-retraining")
CRON = os.environ.get("HARDCASE_SCHEDULE", "0 3 * * 1")
WITHIN = timedelta(minutes=int(os.environ.get("HARDCASE_DEADLINE_MINUTES", "1440")))
PACKAGE = os.environ.get("HARDCASE_PACKAGE", "")
SOURCE = os.environ.get("HARDCASE_SOURCE", "")
if SOURCE and not forms.is_source(SOURCE):
    raise ValueError(f"HARDCASE_SOURCE is {SOURCE!r}, not {forms.EXAMPLES}")
LAST = "last"  # key of the state of the Asset: events may be cleaned up
WITHDRAW = 'if it is not to be trained on, announce it again with "withdrawn": true'

PARAMS = {
    "profile": forms.profile("How to retrain."),
    "source": Param(
        None,
        type=["null", "string"],
        pattern=forms.SOURCE,
        maxLength=forms.LONGEST_SOURCE,
        title="Source of samples",
        description="A path or URI (file, s3, procedural, snapshot), or several URIs with one space between. Empty: "
        "all announced data that was not trained on, else that of the last run, else HARDCASE_SOURCE or the profile's.",
    ),
    "seed": Param(None, type=["null", "integer"], minimum=0, maximum=2**32 - 1, title="Seed", description="Optional."),
    "settings": forms.settings("What differs from the profile."),
    "engine": forms.engine(),
    "force": Param(False, type="boolean", title="Even if nothing is new", description="Start another run."),
}


@task.branch(inlets=[MODEL, NEW_DATA], retries=2)
def plan(
    params: dict[str, Any],
    run_id: str,
    ti: Any,
    inlet_events: Any,
    asset_state_store: Any,
) -> str | None:
    """Find what is to be run, and whether it is anything new."""
    from hardcase_provider.hooks import KubeflowHook, choose_engine
    from hardcase_provider.planning import code_digest, digest_sources, fingerprint

    trained = announcements.read_trained(asset_state_store[NEW_DATA])
    announced = announcements.list_announced(inlet_events[NEW_DATA], trained)
    ti.xcom_push(key="looked", value=[announcement.id for announcement in announced])
    pending = announcements.list_pending(announced, trained)
    taken = announcements.take(announced, pending) if pending and not params["source"] else None
    data = None if params["source"] else taken or trained
    sources = data.data if data else [[source, None] for source in (params["source"] or SOURCE).split()]
    engine = choose_engine(params["engine"])
    chosen = {"profile": params["profile"], "source": announcements.merge_sources(sources), "seed": params["seed"]}
    parameters = {name: value for name, value in chosen.items() if value not in ("", None)}
    parameters |= {"settings": params["settings"]} if params["settings"] else {}
    try:
        holds = digest_sources(sources, engine)
    except AirflowFailException as error:
        raise AirflowFailException(f"{error}; {WITHDRAW}" if taken else str(error)) from error
    code = code_digest()
    if engine == "kubeflow":
        code = KubeflowHook().version(PIPELINE, PACKAGE)["pipeline_version_id"]
    made_of = fingerprint(
        parameters=parameters,
        holds=run_id if None in holds else holds,  # unknown counts as new; the engine's cache decides
        code=code,
        again=f"{run_id}, attempt {ti.try_number}" if params["force"] else "",  # cleared, it is forced again
    )
    last = asset_state_store[MODEL].get(LAST) or {}
    if last.get("fingerprint") == made_of:
        print(f"Nothing new: {parameters} was trained on already, version {last['version']}.")
        announcements.record(asset_state_store[NEW_DATA], taken)
        ti.xcom_push(key="looked", value=[])
        return None
    ti.xcom_push(key="taken", value=taken and taken._asdict())
    ti.xcom_push(key="key", value=f"retraining-{made_of[:16]}")
    ti.xcom_push(key="fingerprint", value=made_of)
    ti.xcom_push(key="parameters", value=parameters)
    ti.xcom_push(key="arguments", value=["run", *forms.write_arguments(parameters)])
    return f"{engine}_run"


@task(outlets=[MODEL], inlets=[NEW_DATA], trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, retries=2)
def publish(ti: Any, outlet_events: Any, asset_state_store: Any) -> dict[str, Any]:
    """Record in the Asset's event what came of it, and which announcements were trained on."""
    from hardcase_provider.alerts import alert
    from hardcase_provider.registry import read_result

    facts = {"fingerprint": ti.xcom_pull(task_ids="plan", key="fingerprint"), **read_result(ti)}
    facts["source"] = ti.xcom_pull(task_ids="plan", key="parameters").get("source")
    announcements.record(asset_state_store[NEW_DATA], announcements.read_taken(ti))
    asset_state_store[MODEL].set(LAST, {name: facts[name] for name in ("fingerprint", "version")})
    outlet_events[MODEL].extra = facts
    if facts["verdict"] == "rejected":
        alert("rejected", f"{facts['model']} was rejected by the gate", dag="retraining", link=facts["report"])
    return facts


@task(inlets=[NEW_DATA], outlets=[PENDING], trigger_rule=TriggerRule.ALL_DONE, retries=2)
def follow(ti: Any, inlet_events: Any, outlet_events: Any, asset_state_store: Any) -> None:
    """Start another run, if data is pending that this run did not take.

    What a failed run looked at waits for the next run. It does not start one, which would fail without an end.
    """
    trained = announcements.read_trained(asset_state_store[NEW_DATA])
    announced = announcements.list_announced(inlet_events[NEW_DATA], trained)
    if any(ti.xcom_pull(task_ids=engine) for engine in ("kubeflow_run", "local_run")):
        trained, looked = announcements.advance(trained, announcements.read_taken(ti)), []
    else:
        looked = ti.xcom_pull(task_ids="plan", key="looked")
    if looked is None:
        raise AirflowSkipException("plan did not look at the announcements")
    pending = [data for data in announcements.list_pending(announced, trained) if data.id not in looked]
    if not pending:
        raise AirflowSkipException("no more data is pending")
    outlet_events[PENDING].extra = {"sources": [data.source for data in pending]}


with DAG(
    "retraining",
    description="Retrain the screener when there is something new",
    schedule=AssetOrTimeSchedule(timetable=schedule_at(CRON), assets=(PENDING | DRIFT)),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=1,  # two that start at once stall the API server of one machine, with its SQLite, for a minute
    params=PARAMS,
    tags=["hardcase", f"schedule {CRON} UTC"],  # beside Assets, the list of DAGs shows no schedule
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
    runs = [kubeflow_run, local_run]
    planned >> runs >> publish()
    runs >> follow()  # a leaf beside `publish`, whose state decides that of the run
