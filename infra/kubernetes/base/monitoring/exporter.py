"""Export runs and registered versions to Prometheus, with nothing but what the light image holds.

Runs come from KFP's REST API, how they ended from their records in the store, scores from the dossiers of registered
versions there. Kubeflow alone calls a stopped run failed. Nothing is verified here; `hardcase audit` does that. A
source that cannot be read is named by `hardcase_source_up`, and the others are exported all the same.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hardcase.data.scores import read_scores
from hardcase.kubeflow.address import find_address
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.runs import cancelled_at, parse_moment
from hardcase.store.store import Store, open_store

PORT: Final = 9109
RUNS: Final = 100  # the newest; older ones are Prometheus's to remember
MODELS: Final = "models"
RECORDS: Final = "runs"  # written once, by the last step of a run
STATES: Final = {"failed": "FAILED", "cancelled": "CANCELED"}  # of a record, in Kubeflow's words; the others succeeded
# Of each metric what it says, and its labels.
METRICS: Final[Mapping[str, tuple[str, list[str]]]] = {
    "hardcase_source_up": ("Whether the source could be read just now.", ["source"]),
    "hardcase_run_info": (
        "A run and its state: of its record, or else Kubeflow's; always 1.",
        ["run", "name", "state"],
    ),
    "hardcase_run_started_seconds": ("When the run was created, Unix time.", ["run", "name"]),
    "hardcase_run_seconds": ("How long the run took; absent while it runs.", ["run", "name"]),
    "hardcase_model_score": (
        "Score of a registered version, of 100; exact_match, of 1.",
        ["model", "version", "stage", "score"],
    ),
    "hardcase_model_version": ("The newest registered version.", ["model"]),
}
Sample = tuple[str, list[str], float]  # metric, values of its labels, value
logger = logging.getLogger("exporter")


class Exporter(Collector):
    """Reads its sources at each scrape.

    Args:
        environment: where Kubeflow and the store are.

    Attributes:
        states: how runs ended, by id, as far as it is known. A record is read once, because it never changes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.states: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        runs: list[dict[str, Any]] = []
        samples: list[Sample] = []
        sources: dict[str, Callable[[], None]] = {
            "kubeflow": lambda: runs.extend(list_newest_runs(self.environment)),
            "records": lambda: self._read_records(run["run_id"] for run in runs),
            "store": lambda: samples.extend(list(list_scores(open_store(self.environment["HARDCASE_STORE"])))),
        }
        for source, read in sources.items():
            try:
                read()
                up = 1
            except Exception:
                logger.exception("%s cannot be read", source)
                up = 0
            samples.append(("hardcase_source_up", [source], up))
        samples += list_run_samples(runs, self.states)
        for name, (text, labels) in METRICS.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for metric, values, value in samples:
                if metric == name:
                    family.add_metric(values, value)
            yield family

    def _read_records(self, ids: Iterable[str]) -> None:
        store = open_store(self.environment["HARDCASE_STORE"])
        for run in set(ids) - set(self.states):
            if record := store.get_named(f"{RECORDS}/{run}.json"):
                self.states[run] = STATES.get(json.loads(record)["status"], "SUCCEEDED")


def list_newest_runs(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the newest runs that KFP knows."""
    token = environment.get("KFP_TOKEN_FILE", "")
    # All attempts together are shorter than Prometheus waits for a scrape.
    address = find_address(
        environment["KFP_URL"],
        token_file=token if Path(token).is_file() else "",
        in_cluster=True,
        timeout=4,
        pause=0.2,
    )
    query = {"namespace": environment["KFP_NAMESPACE"], "page_size": RUNS, "sort_by": "created_at desc"}
    return Client(address).ask("GET", "runs", query=query).get("runs") or []


def list_run_samples(runs: Iterable[Mapping[str, Any]], states: Mapping[str, str]) -> Iterator[Sample]:
    """Yield the samples of runs, whose state is that of their record where they have one."""
    for run in runs:
        names = [run["run_id"], run.get("display_name", "")]
        state = "CANCELED" if run.get("state") == "FAILED" and cancelled_at(run) else str(run.get("state", ""))
        yield "hardcase_run_info", [*names, states.get(run["run_id"]) or state], 1
        started, ended = (parse_moment(run.get(name), 0) for name in ("created_at", "finished_at"))
        if started:
            yield "hardcase_run_started_seconds", names, started
        if started and ended > started:
            yield "hardcase_run_seconds", names, ended - started


def list_scores(store: Store) -> Iterator[Sample]:
    """Yield the scores of registered versions, and which version is the newest."""
    newest: dict[str, int] = {}
    for name in store.list_names(MODELS):
        parts = name.split("/")
        if len(parts) != 4 or parts[3] != "scores.json" or not parts[2].isdigit():
            continue
        model, version = parts[1], parts[2]
        newest[model] = max(newest.get(model, 0), int(version))
        for stage, scores in read_scores(store.get_named(name) or b"{}").items():
            for score in ("overall", "exact_match"):
                # Beside the stages stand numbers, of samples and the like.
                if isinstance(scores, dict) and isinstance(value := scores.get(score), int | float):
                    yield "hardcase_model_score", [model, version, stage, score], float(value)
    for model, number in newest.items():
        yield "hardcase_model_version", [model], number


if __name__ == "__main__":
    logging.basicConfig()
    registry = CollectorRegistry()
    registry.register(Exporter(os.environ))
    _, thread = start_http_server(PORT, registry=registry)
    thread.join()
