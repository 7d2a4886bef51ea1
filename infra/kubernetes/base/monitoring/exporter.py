"""Runs and versions as Prometheus reads them, with nothing but what the light image holds.

Runs come from KFP's REST API, scores from the dossiers of registered versions in the store. These numbers are for
looking at: nothing is verified here, that is what `hardcase audit` does. A source that fails is said by
`hardcase_source_up`, and the rest is told all the same.
"""

import json
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hardcase.data.store import Store, open_store

PORT = 9109
RUNS = 100  # the newest; older ones are Prometheus's to remember
MODELS = "models"
HELP = {
    "hardcase_source_up": "Whether the source could be read just now.",
    "hardcase_run_info": "A run and its state; always 1.",
    "hardcase_run_started_seconds": "When the run was created, Unix time.",
    "hardcase_run_seconds": "How long the run took; of one that goes on, not told.",
    "hardcase_model_score": "Score of a registered version, of 100; exact_match, of 1.",
    "hardcase_model_version": "The newest registered version.",
}
Sample = tuple[str, dict[str, str], float]
logger = logging.getLogger("exporter")


def runs(url: str, namespace: str, token: str, timeout: float = 20) -> Iterator[Sample]:
    """What KFP says of its newest runs."""
    query = {"namespace": namespace, "page_size": RUNS, "sort_by": "created_at desc"}
    request = urllib.request.Request(f"{url}/apis/v2beta1/runs?{urllib.parse.urlencode(query)}")  # noqa: S310
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
        found = json.load(reply).get("runs") or []
    for run in found:
        name = {"run": run["run_id"], "name": run.get("display_name", "")}
        yield "hardcase_run_info", {**name, "state": run.get("state", "")}, 1
        started, ended = _time(run.get("created_at")), _time(run.get("finished_at"))
        if started:
            yield "hardcase_run_started_seconds", name, started
        if started and ended > started:
            yield "hardcase_run_seconds", name, ended - started


def scores(store: Store) -> Iterator[Sample]:
    """What the dossiers of registered versions say, and which version is the newest."""
    newest: dict[str, int] = {}
    for place in store.names(MODELS):
        parts = place.split("/")
        if len(parts) != 4 or parts[3] != "scores.json" or not parts[2].isdigit():
            continue
        model, version = parts[1], parts[2]
        newest[model] = max(newest.get(model, 0), int(version))
        for stage, found in json.loads(store.get_named(place) or b"{}").items():
            for score in ("overall", "exact_match"):
                # Beside the stages stand numbers, of samples and the like.
                if isinstance(found, dict) and isinstance(value := found.get(score), int | float):
                    labels = {"model": model, "version": version, "stage": stage, "score": score}
                    yield "hardcase_model_score", labels, float(value)
    for model, number in newest.items():
        yield "hardcase_model_version", {"model": model}, number


def page(environment: dict[str, str]) -> str:
    """The metrics in Prometheus's text format."""
    token = Path(environment.get("KFP_TOKEN_FILE", ""))
    secret = token.read_text(encoding="utf-8").strip() if token.is_file() else ""
    sources = {
        "kubeflow": lambda: runs(environment["KFP_URL"], environment["KFP_NAMESPACE"], secret),
        "store": lambda: scores(open_store(environment["HARDCASE_STORE"])),
    }
    samples: list[Sample] = []
    for source, read in sources.items():
        try:
            samples += list(read())
            up = 1
        except Exception:
            logger.exception("%s cannot be read", source)
            up = 0
        samples.append(("hardcase_source_up", {"source": source}, up))
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
    """/metrics and /health."""

    def do_GET(self) -> None:
        body = {"/health": lambda: "ok\n", "/metrics": lambda: page(dict(os.environ))}.get(self.path)
        data = body().encode() if body else b"no such page\n"
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Scrapes are no news."""


if __name__ == "__main__":
    logging.basicConfig()
    ThreadingHTTPServer(("", PORT), Answer).serve_forever()
