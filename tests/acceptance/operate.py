"""Launch a run by Airflow's operator and follow it by its trigger, as Airflow does; its result as JSON.

Airflow has an environment of its own, so this is a program. It reads the arguments of the operator as JSON, and the
connection from AIRFLOW_CONN_KUBEFLOW_DEFAULT.
"""

import asyncio
import json
import sys
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from hardcase_provider.operators import KubeflowRunOperator


class Instance:
    """As much of a task instance as the operator uses."""

    def xcom_push(self, key: str, value: Any) -> None:
        """Take it."""


async def first_event(trigger: Any) -> Any:
    """Return what a trigger fires."""
    return await anext(aiter(trigger.run()))


def main() -> None:
    """Execute the operator, and resume it when its trigger fires."""
    operator = KubeflowRunOperator(task_id="kubeflow_run", **json.loads(sys.argv[1]))
    context = {"ti": Instance(), "run_id": "acceptance"}
    try:
        try:
            result = operator.execute(context)
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            result = getattr(operator, deferred.method_name)(context, event=event.payload, **(deferred.kwargs or {}))
    except AirflowFailException as error:
        result = {"state": "FAILED", "again": False, "message": str(error)}
    except Exception as error:
        result = {"state": "FAILED", "again": True, "message": str(error)}
    print(json.dumps(result))


main()
