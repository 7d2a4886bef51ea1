"""Score a registered version on a source, on either engine; what follows takes one shape of result.

(a branch that ends in `ordered`) ─┬─ kubeflow_run (deferred) ─┬─ result
                                   └─ local_run ───────────────┘
"""

import os
from collections.abc import Mapping
from typing import Any, Final

from airflow.sdk import TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowException

from hardcase_provider.operators import KubeflowRunOperator, LocalRunOperator

PIPELINE: Final = os.environ.get("HARDCASE_EVALUATION_PIPELINE", "hardcase-evaluation")
PACKAGE: Final = os.environ.get("HARDCASE_EVALUATION_PACKAGE", "")
COMMON: Final = ("snapshot", "samples", "evaluation")


def ordered(params: Mapping[str, Any], model: str, source: str) -> str:
    """Leave to the tasks of `evaluated` what they are to do; the name of the one to go on with.

    Args:
        params: of the DAG's run, with `engine` and `profile`.
        model: `NAME@ALIAS` or `NAME:VERSION`.
        source: of samples with answers.
    """
    from hardcase_provider.hooks import KubeflowHook, chosen_engine
    from hardcase_provider.planning import fingerprint, source_digest
    from hardcase_provider.registry import resolve_version

    context = get_current_context()
    engine = chosen_engine(params["engine"])
    left: dict[str, Any] = {"arguments": ["evaluate", f"--model={model}", f"--data={source}"]}
    if engine == "kubeflow":
        parameters = {"model": model, "source": source, "profile": params["profile"]}
        day = context["dag_run"].run_after.date().isoformat()  # another day, another look
        made_of = fingerprint(
            parameters={**parameters, "model": resolve_version(model)},
            holds=source_digest(source, engine),
            code=KubeflowHook().version(PIPELINE, PACKAGE)["pipeline_version_id"],
            day=day,
        )
        left |= {"parameters": parameters, "key": f"evaluation-{made_of[:16]}"}
    for key, value in left.items():
        context["ti"].xcom_push(key=key, value=value)
    return f"{engine}_run"


def evaluated(order: Any) -> Any:
    """The tasks that do what was ordered, and the result.

    Args:
        order: the task of the branch.
    """
    runs = [
        KubeflowRunOperator(
            task_id="kubeflow_run",
            key=order["key"],
            pipeline=PIPELINE,
            parameters=order["parameters"],
            package=PACKAGE,
            account=os.environ.get("HARDCASE_SERVICE_ACCOUNT", ""),
            poll=float(os.environ.get("HARDCASE_POLL_SECONDS", "30")),
        ),
        LocalRunOperator(task_id="local_run", arguments=order["arguments"]),
    ]
    found = result()
    order >> runs >> found
    return found


@task(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, retries=2)
def result(ti: Any) -> dict[str, Any]:
    """What came of it: `snapshot`, `samples`, `scores`, `evaluation`; of Kubeflow `version`, `drift` and `run` too."""
    from hardcase_provider.registry import EVALUATIONS, find_result

    if told := ti.xcom_pull(task_ids="local_run"):
        more: dict[str, Any] = {"engine": "local", "version": None, "drift": None, "run": None}
    else:
        run = ti.xcom_pull(task_ids="kubeflow_run")
        if not (told := find_result(run["run_id"], EVALUATIONS)):
            raise AirflowException(
                f"run {run['run_id']} succeeded, but MLflow has no record of it: see the log of its step `record`; "
                f"the result is in the store, evaluations/<model>/{run['run_id']}.json"
            )
        more = {"engine": "kubeflow", "version": told["model"], "drift": told["drift"], "run": run["link"]}
    return {**{name: told[name] for name in COMMON}, "scores": told["scores"]["model"], **more}
