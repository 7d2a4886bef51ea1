"""When data is announced: check the announcements at once, and start a retraining.

    check
    start → Asset pending_data, which starts `retraining`

`retraining` lists all announcements itself. Airflow 3.3.2 cannot list events while a run that they started is queued
(`airflow/api_fastapi/execution_api/datamodels/asset_event.py:34`: `start_date` must not be None), so that a queued
retraining would keep an active one from listing them. The runs of this DAG are over within seconds.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from hardcase_provider import announcements
from hardcase_provider.alerts import alert_failure
from hardcase_provider.assets import NEW_DATA, PENDING


@task(inlets=[NEW_DATA], retries=2)
def check(inlet_events: Any, asset_state_store: Any) -> None:
    """Fail if the forms would not take what was announced; retrainings ignore it."""
    if faults := announcements.find_faults(inlet_events[NEW_DATA], asset_state_store[NEW_DATA]):
        raise AirflowFailException("; ".join(faults))


@task(inlets=[NEW_DATA], outlets=[PENDING], retries=2)
def start(inlet_events: Any, outlet_events: Any, asset_state_store: Any) -> None:
    """Update the Asset that starts a retraining."""
    trained = announcements.read_trained(asset_state_store[NEW_DATA])
    pending = announcements.list_pending(announcements.list_announced(inlet_events[NEW_DATA], trained), trained)
    if not pending:
        raise AirflowSkipException("no data is pending")
    outlet_events[PENDING].extra = {"sources": [data.source for data in pending]}


with DAG(
    "announcements",
    description="Check announcements of data, and start a retraining",
    schedule=[NEW_DATA],
    catchup=False,
    max_active_tasks=1,  # as of `retraining`
    is_paused_upon_creation=False,  # it only passes announcements on; `retraining` is what is switched on and off
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": alert_failure, "retry_delay": timedelta(seconds=10)},
):
    check()
    start()
