"""Alert people: a JSON message to the webhook of the connection `hardcase_alerts` (type http), if there is one.

Host, scheme and path are the webhook's; a password is sent as bearer token. `text` is what chat programs show. An alert
that cannot be sent is a line in the log and breaks nothing.
"""

import logging
from typing import Any, Final

CONNECTION: Final = "hardcase_alerts"
TIMEOUT: Final = 10
logger = logging.getLogger(__name__)


def alert_failure(context: Any) -> None:
    """Send an alert of a task that failed for good; to be an `on_failure_callback`."""
    ti = context["ti"]
    facts = {"dag": ti.dag_id, "run": context["run_id"], "task": ti.task_id, "link": getattr(ti, "log_url", "")}
    alert("failed", f"{ti.dag_id} failed at {ti.task_id}: {context.get('exception')}", **facts)


def alert(event: str, text: str, **facts: Any) -> None:
    """Send an alert from a task."""
    import httpx
    from airflow.sdk import BaseHook

    logger.warning("%s: %s", event, text)
    try:
        request = _request(BaseHook.get_connection(CONNECTION), event, text, facts)
        httpx.post(**request, timeout=TIMEOUT).raise_for_status()
    except Exception as error:
        _not_sent(error)


async def alert_lateness(dag: str, within: str, context: Any = None) -> None:
    """Send an alert from the triggerer, unless the run has ended; the callback of a DeadlineAlert.

    Airflow 3.3.2 calls it for failed runs too: only those that succeeded in time lose their deadline
    (`airflow/models/dagrun.py:1277`, `airflow/models/deadline.py:205`).
    """
    import httpx
    from airflow.sdk import BaseHook

    about = (context or {}).get("dag_run") or {}
    run = str(about.get("dag_run_id") or "")
    if about.get("end_date"):
        logger.info("run %s of %s is not late: it ended as %s", run, dag, about.get("state"))
        return
    text = f"{dag} is late: run {run or '?'} has not ended within {within}"
    logger.warning("late: %s", text)
    try:
        request = _request(await BaseHook.aget_connection(CONNECTION), "late", text, {"dag": dag, "run": run})
        async with httpx.AsyncClient(timeout=TIMEOUT) as client:
            (await client.post(**request)).raise_for_status()
    except Exception as error:
        _not_sent(error)


def _request(connection: Any, event: str, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    from hardcase_provider.hooks import url_of

    url = url_of(connection) + str(connection.extra_dejson.get("path", ""))
    headers = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
    return {"url": url, "headers": headers, "json": {"event": event, "text": text, **facts}}


def _not_sent(error: Exception) -> None:
    if type(error).__name__ == "AirflowNotFoundException" or "not found" in str(error).lower():
        logger.info("no alert is sent: there is no connection %s", CONNECTION)
    else:
        logger.warning("the alert could not be sent: %s", error)
