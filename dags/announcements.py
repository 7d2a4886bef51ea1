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
from hardcase_provider.alerts import alert_failure
from hardcase_provider.announcements import find_fault
from hardcase_provider.assets import NEW_DATA, PENDING


@task(retries=2)
def check(triggering_asset_events: Any) -> None:
    """Fail if the forms would not take what was announced; the retraining ignores it."""
    events = [event for events in triggering_asset_events.values() for event in events]
    faults = [(event.timestamp.isoformat(), find_fault(event.extra)) for event in events]
    if lines := [f"announcement of {time} is ignored: {fault}" for time, fault in faults if fault]:
        raise AirflowFailException("; ".join(lines))


@task(outlets=[PENDING], retries=2)
def start(triggering_asset_events: Any, outlet_events: Any) -> None:
    """Update the Asset that starts a retraining."""
    events = [event for events in triggering_asset_events.values() for event in events]
    sources = [event.extra["source"] for event in events if not find_fault(event.extra)]
    if not sources:
        raise AirflowSkipException("no data was announced that the forms would take")
    outlet_events[PENDING].extra = {"sources": sources}


with DAG(
    "announcements",
    description="Check announcements of data, and start a retraining",
    schedule=[NEW_DATA],
    catchup=False,
    is_paused_upon_creation=False,  # it only passes announcements on; `retraining` is what is switched on and off
    tags=["hardcase"],
    doc_md=__doc__,
    default_args={"on_failure_callback": alert_failure, "retry_delay": timedelta(seconds=10)},
):
    check()
    start()
