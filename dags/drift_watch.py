"""Daily: does the champion still do on the newest labelled batch what it did when it was promoted?

    choose ─┬─ kubeflow_run (deferred) ─┬─ result → compare → Asset drift_report
            └─ local_run ───────────────┘              └──── alarm → Asset drift_alarm, which starts `retraining`

On Kubeflow the pipeline compares too, with the evaluation by which the version was registered; either may alarm.
`compare` writes report.json and report.html. Before the first promotion that this Airflow has seen, the first
evaluation is what later ones are compared with.
"""

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException
from hardcase_provider import forms
from hardcase_provider.alerts import failed
from hardcase_provider.assets import DRIFT, DRIFT_REPORT, MODEL, MODEL_NAME, schedule_at
from hardcase_provider.evaluation import evaluated, ordered

PARAMS = {
    "model": Param(
        f"{MODEL_NAME}@champion", type="string", pattern=r"^[A-Za-z0-9._-]+[@:][A-Za-z0-9._-]+$", title="Model"
    ),
    "batches": Param(
        os.environ.get("HARDCASE_BATCHES", "procedural://?samples=200&seed=11"),
        type="string",
        pattern=forms.SOURCE,
        title="Labelled batches",
        description="A folder of batches, of which the last by name is taken, or one source of samples with answers.",
    ),
    "level": Param(0.01, type="number", exclusiveMinimum=0, maximum=0.5, title="Level of a false alarm"),
    "engine": forms.engine(),
    "profile": forms.profile("How to answer, and on which machines; on Kubeflow only."),
}


@task.branch
def choose(params: dict[str, Any]) -> str:
    """Find the newest batch."""
    from hardcase_provider.planning import newest_batch

    return ordered(params, params["model"], newest_batch(params["batches"]))


@task(inlets=[MODEL, DRIFT_REPORT], outlets=[DRIFT_REPORT])
def compare(params: dict[str, Any], result: dict[str, Any], run_id: str, outlet_events: Any) -> dict[str, Any]:
    """Compare with the scores at promotion, and write the report."""
    from hardcase_provider.planning import worsened
    from hardcase_provider.reporting import write_drift_report

    events = get_current_context()["inlet_events"]
    now = {name: result["scores"][name] for name in ("overall", "exact_match", "intervals")}
    model = result["version"] or params["model"]
    before, baseline = baseline_scores(list(events[MODEL]), list(events[DRIFT_REPORT]), params["model"], model)
    own, pipeline = worsened(before or now, now, params["level"]), result["drift"]
    alarmed = [
        *(["the scores"] if own["drifted"] else []),
        *(["the pipeline's drift step"] if pipeline and pipeline["drifted"] else []),
    ]
    found = {
        **own,
        "drifted": bool(alarmed),
        "alarmed_by": alarmed,
        "baseline": baseline,
        "pipeline": pipeline,
        "model": model,
        **{name: result[name] for name in ("snapshot", "samples", "run")},
    }
    report = write_drift_report(run_id, {**found, "evaluation": result["evaluation"]})
    outlet_events[DRIFT_REPORT].extra = {**found, "scores": now, "report": report}
    return {**found, "report": report}


def baseline_scores(models: list[Any], reports: list[Any], asked: str, model: str) -> tuple[dict[str, Any] | None, str]:
    """Scores to compare with, and what they are of: the last promotion, or the first report on that model.

    Args:
        models: events of the Asset of models, the oldest first.
        reports: the same of the drift reports.
        asked: model of the DAG's run, by alias or number.
        model: what that is, by number if it is known.
    """
    promoted = [event.extra for event in models if event.extra.get("verdict") == "promoted"]
    if promoted and promoted[-1].get("scores") and asked == f"{MODEL_NAME}@champion":
        return promoted[-1]["scores"], f"{MODEL_NAME}:{promoted[-1]['version']} when it was promoted"
    earlier = [event.extra for event in reports if event.extra.get("model") == model and event.extra.get("scores")]
    if earlier:
        return earlier[0]["scores"], f"the first report on {model}, of snapshot {earlier[0]['snapshot'][:12]}"
    return None, "nothing: this is the first report"


@task(outlets=[DRIFT])
def alarm(found: dict[str, Any], outlet_events: Any) -> None:
    """Update the drift Asset, if there is reason to."""
    from hardcase_provider.alerts import tell
    from hardcase_provider.reporting import changes

    if not found["drifted"]:
        raise AirflowSkipException("no drift")
    outlet_events[DRIFT].extra = found
    text = f"{found['model']} has drifted by {' and '.join(found['alarmed_by'])}: {changes(found)}"
    tell("drift", text, dag="drift_watch", link=found["report"])


with DAG(
    "drift_watch",
    description="Evaluate the champion on the newest labelled batch",
    schedule=schedule_at("0 5 * * *"),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": failed, "retries": 1, "retry_delay": timedelta(minutes=5)},
):
    alarm(compare(result=evaluated(choose())))
