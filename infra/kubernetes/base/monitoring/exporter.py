"""Export runs and registered versions to Prometheus, with nothing but what the light image holds.

Runs come from KFP's REST API, how they ended from their records in the store, scores from the dossiers of registered
versions there. Kubeflow alone calls a stopped run failed. Nothing is verified here; `hardcase audit` does that. A
source that cannot be read is named by `hardcase_source_up`, and the others are exported all the same.
"""

import json
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from hardcase.data.scores import read_scores
from hardcase.store.store import Store, open_store

PORT = 9109
RUNS = 100  # the newest; older ones are Prometheus's to remember
MODELS = "models"
RECORDS = "runs"  # written once, by the last step of a run
STATES = {"failed": "FAILED", "cancelled": "CANCELED"}  # of a record, in Kubeflow's words; the others succeeded
HELP = {
    "hardcase_source_up": "Whether the source could be read just now.",
    "hardcase_run_info": "A run and its state: of its record, or else Kubeflow's; always 1.",
    "hardcase_run_started_seconds": "When the run was created, Unix time.",
    "hardcase_run_seconds": "How long the run took; absent while it runs.",
    "hardcase_model_score": "Score of a registered version, of 100; exact_match, of 1.",
    "hardcase_model_version": "The newest registered version.",
}
Sample = tuple[str, dict[str, str], float]
logger = logging.getLogger("exporter")


def newest_runs(url: str, namespace: str, token: str, timeout: float = 20) -> list[dict[str, Any]]:
    """Return the newest runs that KFP knows."""
    query = {"namespace": namespace, "page_size": RUNS, "sort_by": "created_at desc"}
    request = urllib.request.Request(f"{url}/apis/v2beta1/runs?{urllib.parse.urlencode(query)}")  # noqa: S310
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
        return json.load(reply).get("runs") or []


def record_states(store: Store, ids: Iterable[str], known: dict[str, str]) -> None:
    """Add to `known` how runs ended, of those whose records are in the store by now."""
    for run in set(ids) - set(known):
        if record := store.get_named(f"{RECORDS}/{run}.json"):
            known[run] = STATES.get(json.loads(record)["status"], "SUCCEEDED")


def run_samples(runs: Iterable[dict[str, Any]], states: Mapping[str, str]) -> Iterator[Sample]:
    """Yield the samples of runs, whose state is that of their record where they have one."""
    for run in runs:
        name = {"run": run["run_id"], "name": run.get("display_name", "")}
        yield "hardcase_run_info", {**name, "state": states.get(run["run_id"]) or _state(run)}, 1
        started, ended = _time(run.get("created_at")), _time(run.get("finished_at"))
        if started:
            yield "hardcase_run_started_seconds", name, started
        if started and ended > started:
            yield "hardcase_run_seconds", name, ended - started


def _state(run: dict[str, Any]) -> str:
    """Return a run's state by KFP's account, which ends a stopped run as failed after CANCELING."""
    state = str(run.get("state", ""))
    stopped = any(past.get("state") == "CANCELING" for past in run.get("state_history") or [])
    return "CANCELED" if stopped and state == "FAILED" else state


def scores(store: Store) -> Iterator[Sample]:
    """Yield the scores of registered versions, and which version is the newest."""
    newest: dict[str, int] = {}
    for place in store.list_names(MODELS):
        parts = place.split("/")
        if len(parts) != 4 or parts[3] != "scores.json" or not parts[2].isdigit():
            continue
        model, version = parts[1], parts[2]
        newest[model] = max(newest.get(model, 0), int(version))
        for stage, found in read_scores(store.get_named(place) or b"{}").items():
            for score in ("overall", "exact_match"):
                # Beside the stages stand numbers, of samples and the like.
                if isinstance(found, dict) and isinstance(value := found.get(score), int | float):
                    labels = {"model": model, "version": version, "stage": stage, "score": score}
                    yield "hardcase_model_score", labels, float(value)
    for model, number in newest.items():
        yield "hardcase_model_version", {"model": model}, number


def page(environment: Mapping[str, str], states: dict[str, str]) -> str:
    """Return the metrics in Prometheus's text format.

    Args:
        environment: where Kubeflow and the store are.
        states: how runs ended, by id, as far as it is known; those that are read now are added.
    """
    token = Path(environment.get("KFP_TOKEN_FILE", ""))
    secret = token.read_text(encoding="utf-8").strip() if token.is_file() else ""
    runs: list[dict[str, Any]] = []
    samples: list[Sample] = []

    def ask_kubeflow() -> None:
        runs.extend(newest_runs(environment["KFP_URL"], environment["KFP_NAMESPACE"], secret))

    def read_records() -> None:
        record_states(open_store(environment["HARDCASE_STORE"]), (run["run_id"] for run in runs), states)

    def read_scores() -> None:
        samples.extend(list(scores(open_store(environment["HARDCASE_STORE"]))))

    for source, read in {"kubeflow": ask_kubeflow, "records": read_records, "store": read_scores}.items():
        try:
            read()
            up = 1
        except Exception:
            logger.exception("%s cannot be read", source)
            up = 0
        samples.append(("hardcase_source_up", {"source": source}, up))
    samples += run_samples(runs, states)
    lines = []
    for metric, text in HELP.items():
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge"]
        lines += [f"{name}{{{_labels(labels)}}} {value}" for name, labels, value in samples if name == metric]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in labels.items()}
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


class Answer(BaseHTTPRequestHandler):
    """Answer /metrics and /health."""

    states: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        pages: dict[str, Callable[[], str]] = {
            "/health": lambda: "ok\n",
            "/metrics": lambda: page(os.environ, self.states),
        }
        data = pages[self.path]().encode() if self.path in pages else b"no such page\n"
        self.send_response(200 if self.path in pages else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Log no scrapes."""


if __name__ == "__main__":
    logging.basicConfig()
    ThreadingHTTPServer(("", PORT), Answer).serve_forever()
