"""The committed YAML run as a cluster would run it, but on this machine: one click, and a run that fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler
from mlflow.tracking import MlflowClient

from hardcase.audit.examine import examine
from hardcase.compiled import FOLDER, list_steps
from hardcase.provenance.signing import make_key, open_keyring
from hardcase.registry.tracking import RESULT_TAG, RUN_TAG
from hardcase.store.store import open_store

STEPS = list_steps("retraining")
RUN = """
import json, sys
from kfp import components, local
folder, package, parameters = sys.argv[1:]
places = {"pipeline_root": folder + "/artifacts", "cache_root": folder + "/cache"}
local.init(local.SubprocessRunner(use_venv=False), enable_caching=True, **places)
components.load_component_from_file(package)(**json.loads(parameters))
"""


@dataclass
class Cluster:
    """Where the pods' environment points, and who is told."""

    folder: Path
    hooks: list[dict[str, Any]] = field(default_factory=list)
    mails: list[Message] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def click(self, run: str, pipeline: str = "retraining", **parameters: Any) -> "subprocess.CompletedProcess[str]":
        """Start a pipeline with these parameters, all others by default; retries do not wait."""
        compiled = (FOLDER / f"{pipeline}.yaml").read_text(encoding="utf-8")
        package = self.folder / "package.yaml"
        package.write_text(compiled.replace("backoffDuration: 20s", "backoffDuration: 0s"), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-c", RUN, str(self.folder), str(package), json.dumps(parameters)],
            env={**os.environ, **self.environment, "HARDCASE_RUN": run, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def shown(self, name: str) -> str:
        """The newest artifact of that name."""
        found = sorted(self.folder.glob(f"artifacts/*/{name}"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1].read_text(encoding="utf-8")

    def record(self, run: str) -> dict[str, Any]:
        """The record of a run in the store."""
        found: dict[str, Any] = json.loads((self.folder / "store" / "runs" / f"{run}.json").read_text())
        return found

    def shown_in_mlflow(self, experiment: str, run: str) -> dict[str, Any]:
        """What MLflow shows of a run."""
        client = MlflowClient(f"sqlite:///{self.folder}/scratch/mlflow.db")
        place = client.get_experiment_by_name(experiment).experiment_id
        (shown,) = client.search_runs([place], f"tags.`{RUN_TAG}` = '{run}'")
        result: dict[str, Any] = json.loads(shown.data.tags[RESULT_TAG])
        return result

    def attempts(self, run: str, step: str) -> list[str]:
        return sorted(path.name for path in (self.folder / "store" / "notes" / run).glob(f"{step}.*"))


@pytest.fixture
def cluster(tmp_path: Path, unused_port: int) -> Iterator[Cluster]:
    there = Cluster(tmp_path)

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            there.hooks.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    class Inbox(MessageHandler):
        def handle_message(self, message: Message) -> None:
            there.mails.append(message)

    hook = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=hook.serve_forever, daemon=True).start()
    smtp = Controller(Inbox(), hostname="127.0.0.1", port=unused_port)
    smtp.start()
    make_key(tmp_path / "keys")
    own = {
        "HARDCASE_STORE": (tmp_path / "store").as_uri(),
        "HARDCASE_SIGNING_KEY": str(tmp_path / "keys" / "signing.pem"),
        "HARDCASE_SCRATCH": str(tmp_path / "scratch"),
        "HARDCASE_CACHE": str(tmp_path / "near"),
        "HARDCASE_UI": "https://kubeflow.example.org/pipeline",
        "HARDCASE_WEBHOOK": f"http://127.0.0.1:{hook.server_port}/hook",
        "HARDCASE_SMTP_HOST": "127.0.0.1",
        "HARDCASE_SMTP_PORT": str(unused_port),
        "HARDCASE_MAIL_FROM": "hardcase@example.org",
        "HARDCASE_MAIL_TO": "platform@example.org",
    }
    there.environment = own
    yield there
    smtp.stop()
    hook.shutdown()
    hook.server_close()


def test_one_click_trains_in_shards_registers_and_reports_and_a_second_comes_from_the_cache(cluster: Cluster) -> None:
    no_floor = {"register.min_overall": 0, "register.min_valid": 0}
    shards = {"cluster.rollout_shards": 2, "cluster.answer_shards": 2}
    asked = {"profile": "smoke", "settings": {**shards, **no_floor}}
    done = cluster.click("run-1", **asked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    keys = open_keyring(cluster.environment["HARDCASE_SIGNING_KEY"], [])
    audit = examine(open_store(cluster.environment["HARDCASE_STORE"]), "image-screener", keys)
    assert audit.first is None
    assert list(audit.links) == STEPS[1:-1], "in order, each once, whatever the number of shards"
    assert {link.run for link in audit.links.values()} == {"run-1"}
    assert "image-screener:1 was promoted and is the champion" in cluster.shown("conclude/summary")
    assert "<html" in cluster.shown("conclude/report")
    assert set(json.loads(cluster.shown("evaluate/metrics"))) >= {"final overall", "sft exact_match"}
    matrix = json.loads(cluster.shown("evaluate/confusion"))
    record = cluster.record("run-1")
    assert record["status"] == "succeeded" and record["error"] is None
    assert record["scores"].keys() == {"chance", "sft", "final"} and sum(map(sum, matrix)) > 0
    assert {step: each["status"] for step, each in record["steps"].items()} == dict.fromkeys(STEPS, "succeeded")
    assert audit.provenance is not None and audit.version is not None
    assert record["snapshot"] == audit.provenance.dependencies["snapshot"].digest
    assert record["model"]["digest"] == audit.version.digest
    assert cluster.hooks == [] and cluster.mails == [], "nobody is told of what went well"
    assert cluster.shown_in_mlflow("hardcase-runs", "run-1")["model"] == record["model"]

    again = cluster.click("run-2", **asked)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    second = cluster.record("run-2")
    cached = {step for step, each in second["steps"].items() if each["cached"]}
    assert cached == set(STEPS), "the version was registered before"
    assert (second["status"], second["model"]) == ("succeeded", record["model"])
    assert cluster.shown_in_mlflow("hardcase-runs", "run-2")["model"] == record["model"]
    assert cluster.attempts("run-2", "sft") == []

    third = cluster.click("run-3", "evaluation", source="procedural://?samples=60&seed=3")
    assert third.returncode == 0, third.stdout[-3000:] + third.stderr[-3000:]
    kept = cluster.record("run-3")
    assert (kept["status"], kept["samples"]) == ("evaluated", 60)
    assert kept["model"] == record["model"]
    assert kept["drift"]["reference"] == audit.version.evaluation
    shown = cluster.shown_in_mlflow("hardcase-runs", "run-3")
    assert shown["scores"]["final"]["overall"] == kept["scores"]["final"]["overall"]
    assert shown["drift"] == kept["drift"]


def test_a_fault_in_the_input_is_told_with_step_and_log_is_not_done_again_and_is_mended(cluster: Cluster) -> None:
    done = cluster.click("run-1", profile="smoke", settings={"validate.min_train_rows": 1000})
    assert done.returncode != 0
    (told,) = cluster.hooks
    assert (told["run"], told["state"], told["step"]) == ("run-1", "FAILED", "validate")
    assert "min_train_rows" in told["message"] or "1000" in told["message"]
    assert any("validate failed" in line for line in told["log"])
    assert told["link"] == "https://kubeflow.example.org/pipeline/#/runs/details/run-1"
    assert told["report"] == f"hardcase report run-1 --store {cluster.environment['HARDCASE_STORE']}"
    assert str(cluster.folder) not in told["text"], "no path that only a pod knows"
    (mail,) = cluster.mails
    assert mail["Subject"].startswith("Run run-1 failed at validate")
    page, summary = cluster.shown("conclude/report"), cluster.shown("conclude/summary")
    assert "Failed" in page and "validate" in page
    assert "Last lines of `validate`" in summary
    record = cluster.record("run-1")
    assert record["error"] == {"step": "validate", "message": told["message"], "exit_code": 2}
    statuses = {step: each["status"] for step, each in record["steps"].items()}
    assert statuses["ingest"] == "succeeded" and statuses["validate"] == "failed"
    assert set(list(statuses.values())[3:]) == {"not reached"}
    assert cluster.shown_in_mlflow("hardcase-runs", "run-1")["error"]["exit_code"] == 2


def test_settings_that_no_profile_has_are_told_too(cluster: Cluster) -> None:
    assert cluster.click("run-1", profile="smoke", settings={"sft.stepps": 3}).returncode != 0
    (told,) = cluster.hooks
    assert told["step"] == "configure"
    assert "sft.stepps" in told["message"]
