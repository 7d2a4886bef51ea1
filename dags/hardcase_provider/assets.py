"""The Assets by which the DAGs start each other."""

from datetime import timedelta
from typing import Final

from airflow.sdk import Asset, CronTriggerTimetable

MODEL_NAME: Final = "image-screener"
# A producer of data reports it: POST /api/v2/assets/events with {"source": URI, "digest": what it holds} as extra.
NEW_DATA: Final = Asset(name="new_data", uri="x-hardcase://data/new", group="hardcase")
# Starts a retraining: the DAG `announcements` updates it, or a retraining that leaves data to the next.
PENDING: Final = Asset(name="pending_data", uri="x-hardcase://data/pending", group="hardcase")
DRIFT: Final = Asset(name="drift_alarm", uri="x-hardcase://drift/alarm", group="hardcase")
DRIFT_REPORT: Final = Asset(name="drift_report", uri="x-hardcase://drift/report", group="hardcase")
MODEL: Final = Asset(name="image_screener", uri=f"x-hardcase://models/{MODEL_NAME}", group="hardcase")
EVALUATION: Final = Asset(name="evaluations", uri="x-hardcase://evaluations", group="hardcase")


def schedule_at(cron: str) -> CronTriggerTimetable:
    """Return a schedule in UTC whose first run is the next one, whenever the DAG is switched on.

    Airflow 3.3.2 starts the last one too, if a tenth of the interval has not passed since, though `run_immediately` is
    false (`airflow/timetables/trigger.py`, `_calc_first_run`); a difference of time is taken as it is.
    """
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(seconds=1))
