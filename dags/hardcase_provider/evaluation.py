"""Score a registered version on a source, on either engine; both give the same record of the run.

(a branch that ends in `plan_evaluation`) ─┬─ kubeflow_run (deferred) ─┬─ result
                                           └─ local_run ───────────────┘
"""

import os
from collections.abc import Mapping
from typing import Any, Final

from airflow.sdk import TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowException

from hardcase_provider.forms import write_arguments
from hardcase_provider.operators import KubeflowRunOperator, LocalRunOperator

PIPELINE: Final = os.environ.get("HARDCASE_EVALUATION_PIPELINE", "hardcase-evaluation")
PACKAGE: Final = os.environ.get("HARDCASE_EVALUATION_PACKAGE", "")


def plan_evaluation(params: Mapping[str, Any], model: str, source: str) -> str:
    """Leave to the tasks of `run_evaluation` what they are to do; return the name of the one to continue with."""
    from hardcase_provider.hooks import KubeflowHook, choose_engine
    from hardcase_provider.planning import digest_sources, fingerprint
    from hardcase_provider.registry import resolve_version

    context = get_current_context()
    engine = choose_engine(params["engine"])
    parameters = {"model": model, "source": source}
    parameters |= {"settings": params["settings"]} if params["settings"] else {}
    plan: dict[str, Any] = {"arguments": ["evaluate", *write_arguments(parameters)]}
    if engine == "kubeflow":
        day = context["dag_run"].run_after.date().isoformat()  # another day, another look
        digest = fingerprint(
            parameters={**parameters, "model": resolve_version(model)},
            holds=digest_sources([[each, None] for each in source.split()], engine),
            code=KubeflowHook().version(PIPELINE, PACKAGE)["pipeline_version_id"],
            day=day,
        )
        plan |= {"parameters": parameters, "key": f"evaluation-{digest[:16]}"}
    for key, value in plan.items():
        context["ti"].xcom_push(key=key, value=value)
    return f"{engine}_run"


def run_evaluation(plan: Any) -> Any:
    """Return the result of the tasks that do what was planned."""
    runs = [
        KubeflowRunOperator(
            task_id="kubeflow_run",
            key=plan["key"],
            pipeline=PIPELINE,
            parameters=plan["parameters"],
            package=PACKAGE,
            account=os.environ.get("HARDCASE_SERVICE_ACCOUNT", ""),
            poll=float(os.environ.get("HARDCASE_POLL_SECONDS", "30")),
        ),
        LocalRunOperator(task_id="local_run", arguments=plan["arguments"]),
    ]
    read = result()
    plan >> runs >> read
    return read


@task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, retries=2)
def result(ti: Any) -> dict[str, Any]:
    """Return what came of it, as `read_result` does."""
    from hardcase_provider.registry import read_result

    facts = read_result(ti)
    if facts["status"] is None:
        raise AirflowException(
            f"run {facts['run_id']} succeeded, but MLflow has no record of it: see the log of its step `conclude`; "
            f"the record is in the store, runs/{facts['run_id']}.json"
        )
    return facts
