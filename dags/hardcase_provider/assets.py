"""The Assets by which the DAGs start each other."""

from typing import Final

from airflow.sdk import Asset

MODEL_NAME: Final = "image-screener"
# Whoever brings data says so: POST /api/v2/assets/events with {"source": URI, "digest": what it holds} as extra.
NEW_DATA: Final = Asset(name="new_data", uri="x-hardcase://data/new", group="hardcase")
DRIFT: Final = Asset(name="drift_alarm", uri="x-hardcase://drift/alarm", group="hardcase")
DRIFT_REPORT: Final = Asset(name="drift_report", uri="x-hardcase://drift/report", group="hardcase")
MODEL: Final = Asset(name="image_screener", uri=f"x-hardcase://models/{MODEL_NAME}", group="hardcase")
EVALUATION: Final = Asset(name="evaluations", uri="x-hardcase://evaluations", group="hardcase")
