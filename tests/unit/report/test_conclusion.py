"""How a run on a cluster ended: decided as recorded on a real one, told to people, and no secret given away."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink

from hardcase.errors import HardcaseError
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.signing import Keyring, make_key, open_keyring
from hardcase.registry.runs import KILLED, State, StepRecord, write_record
from hardcase.report.conclusion import Conclusion
from hardcase.report.notify import notify
from hardcase.report.summary import StepOutcome, summarise_run
from hardcase.steps import conclude as concluding
from hardcase.steps.conclude import UNSTARTED, conclude
from hardcase.store.store import Store, open_store

STEPS = ("configure", "ingest", "sft", "register")
# What the exit handler is told of a run, by how it ended.
RECORDED = Path(__file__).parents[2] / "recordings" / "kubeflow" / "final-status.json"
STATES = {how: status["state"] for how, status in json.loads(RECORDED.read_text()).items() if how != "told"}
REGISTRATION = {"name": "screener", "version": 3, "alias": "champion", "digest": "d", "verdict": "promoted"}
ERROR = {"step": "sft", "message": "out of\nmemory", "exit_code": 1}
ASKED: dict[str, Any] = {
    "pipeline": "retraining",
    "profile": "tiny",
    "source": "s3://bucket/data",
    "seed": 0,
    "settings": {},
}
ENDED = Conclusion(
    summarise_run("run-1", ASKED, "file:///s", {"sft": StepOutcome()}, {}, ERROR),
    ["last words"],
    "https://ui.example.org/#/r",
)


class Run:
    """The records and attestations of a run, in a real store."""

    def __init__(self, folder: Path) -> None:
        make_key(folder / "keys")
        self.keys: Keyring = open_keyring(str(folder / "keys" / "signing.pem"), [])
        self.store: Store = open_store((folder / "store").as_uri())
        self.folder, self.last = folder, ""

    def attest(self, step: str, **products: Any) -> str:
        """Sign what a step made of what the step before it made."""
        made = {name: self.store.put_object(json.dumps(content).encode()) for name, content in products.items()}
        attested_by = {"before": self.last} if self.last else {}
        link = Attestation(step, dict.fromkeys(attested_by, "0" * 64), made, {}, {}, attested_by=attested_by)
        self.last = self.store.put_object(link.sign(self.keys))
        return self.last

    def record(self, step: str, state: State, **more: Any) -> None:
        """Write a step's record, as long as the others."""
        ended = "" if state == "running" else "2026-11-28T02:00:12.500+00:00"
        record = StepRecord(step, state, started="2026-11-28T02:00:00.000+00:00", ended=ended, **more)
        write_record(self.store, "run-1", record)

    def done(self, step: str, **products: Any) -> None:
        """A step that ran and succeeded."""
        materials = [self.last] if self.last else []
        self.record(step, "succeeded", attestation=self.attest(step, **products), materials=materials)

    def concluded(self, how: str) -> Conclusion:
        page = self.folder / "page.html"
        ended = conclude(self.store, self.keys, "run-1", STATES[how], ASKED, page, "https://ui", "hardcase")
        stored = json.loads(self.store.get_named("runs/run-1.json") or b"")
        assert stored == ended.record, "the same document everywhere"
        assert self.store.get_object(stored["report"]) == page.read_bytes()
        return ended

    def statuses(self, ended: Conclusion) -> dict[str, str]:
        steps = ended.record["steps"].items()
        return {step: "cached" if each["cached"] else each["status"] for step, each in steps}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(concluding, "list_steps", lambda pipeline: list(STEPS))
    return Run(tmp_path)


def registered(run: Run) -> None:
    run.done("register", registration={**REGISTRATION, "reasons": ["better"]})


def test_a_run_succeeded_when_its_last_step_did(run: Run) -> None:
    for step in STEPS[:-1]:
        run.done(step)
    registered(run)
    ended = run.concluded("success")
    assert (ended.state, ended.record["status"], ended.record["error"]) == ("SUCCEEDED", "succeeded", None)
    assert ended.headline == "Run run-1 succeeded: screener:3 was promoted and is the champion"
    assert ended.record["model"] == {name: REGISTRATION[name] for name in ("name", "version", "alias", "digest")}
    assert ended.record["steps"]["sft"] == {"status": "succeeded", "seconds": 12.5, "cached": False}


def test_a_run_served_from_the_cache_succeeded_though_kubeflow_says_running(run: Run) -> None:
    run.done("configure")
    for step in ("ingest", "sft"):
        run.attest(step)  # in an earlier run: no record in this one
    registered(run)
    ended = run.concluded("all_from_cache")
    assert ended.state == "SUCCEEDED"
    expected = {"configure": "succeeded", "ingest": "cached", "sft": "cached", "register": "succeeded"}
    assert run.statuses(ended) == expected


def test_a_terminated_run_was_cancelled_where_it_was(run: Run) -> None:
    run.done("configure")
    run.done("ingest")
    run.record("sft", "running", materials=[run.last])
    ended = run.concluded("terminated_by_api")
    assert (ended.state, ended.headline) == ("CANCELLED", "Run run-1 was cancelled at sft")
    expected = {"configure": "succeeded", "ingest": "succeeded", "sft": "cancelled", "register": "not reached"}
    assert run.statuses(ended) == expected
    assert "Cancelled" in (run.folder / "page.html").read_text()


@pytest.mark.parametrize("how", ["container_failed", "terminated_by_api"])
@pytest.mark.parametrize("state", ["failed", "refused"])
def test_a_step_that_failed_is_named_with_its_own_message_whatever_kubeflow_says(
    run: Run, state: State, how: str
) -> None:
    run.done("configure")
    run.record("ingest", state, message="first")
    run.record("ingest", state, message="row 3: no answer", log=["a", "b"])
    ended = run.concluded(how)
    assert (ended.state, ended.headline) == ("FAILED", "Run run-1 failed at ingest: row 3: no answer")
    assert ended.record["error"] == {
        "step": "ingest",
        "message": "row 3: no answer",
        "exit_code": 2 if state == "refused" else 1,
    }
    assert "Last lines of `ingest`:\n\n```\na\nb\n```" in ended.markdown
    assert "kubectl -n hardcase logs -l pipeline/runid=run-1" in ended.markdown


def test_a_step_that_left_no_word_was_killed(run: Run) -> None:
    run.done("configure")
    run.record("ingest", "running")
    ended = run.concluded("container_failed")
    assert (ended.step, ended.message) == ("ingest", KILLED)
    assert run.statuses(ended)["ingest"] == "failed"


def test_a_pod_that_never_began_is_the_first_step_that_was_not_reached(run: Run) -> None:
    run.done("configure")
    ended = run.concluded("container_failed")
    assert (ended.step, ended.message) == ("ingest", UNSTARTED)
    assert run.statuses(ended) == {
        "configure": "succeeded",
        "ingest": "failed",
        "sft": "not reached",
        "register": "not reached",
    }


def test_what_was_made_before_a_failure_is_on_the_page(run: Run) -> None:
    run.done("configure")
    run.attest("ingest")
    scores = {"chance": None, "sft": None, "final": {"overall": 70.5, "exact_match": 0.75, "cut": 0.5}}
    run.done("sft", scores=scores)
    run.record("register", "failed", message="cannot account for the model", materials=[run.last])
    ended = run.concluded("container_failed")
    assert "| final | 70.5 | 0.750 |" in ended.markdown
    assert "- warning: evaluate: 50% of the answers of the final model were cut" in ended.markdown
    assert "cannot account for the model" in (run.folder / "page.html").read_text(), "though these scores are too few"


def test_a_rejected_model_is_said_to_be_rejected() -> None:
    model = {name: REGISTRATION[name] for name in ("name", "version", "alias", "digest")}
    gate = {"verdict": "rejected", "reasons": ["no better"]}
    known = {"status": "rejected", "error": None, "model": model, "gate": gate}
    ended = replace(ENDED, record={**ENDED.record, **known})
    assert ended.headline == "Run run-1 ended: screener:3 was rejected by the gate: no better"


def test_a_webhook_that_fails_is_named_without_its_address(unused_port: int) -> None:
    secret = f"http://127.0.0.1:{unused_port}/services/T0/secret"
    with pytest.raises(HardcaseError, match="webhook: ConnectionError") as failure:
        notify(ENDED.notice, {"HARDCASE_WEBHOOK": secret})
    assert "secret" not in str(failure.value)


def test_no_password_goes_over_a_connection_that_cannot_be_encrypted(unused_port: int) -> None:
    server = Controller(Sink(), hostname="127.0.0.1", port=unused_port)
    server.start()
    there = {"HARDCASE_SMTP_HOST": "127.0.0.1", "HARDCASE_SMTP_PORT": str(unused_port)}
    there |= {"HARDCASE_MAIL_FROM": "a@example.org", "HARDCASE_MAIL_TO": "b@example.org"}
    try:
        assert notify(ENDED.notice, there) == ["mail"]
        with pytest.raises(HardcaseError, match=r"(?i)starttls"):
            notify(ENDED.notice, {**there, "HARDCASE_SMTP_USER": "u", "HARDCASE_SMTP_PASSWORD": "p"})
    finally:
        server.stop()


def test_mail_without_addresses_is_refused_by_name() -> None:
    with pytest.raises(HardcaseError, match="HARDCASE_MAIL_FROM and HARDCASE_MAIL_TO"):
        notify(ENDED.notice, {"HARDCASE_SMTP_HOST": "127.0.0.1"})


def test_nobody_is_told_where_nobody_is_named() -> None:
    assert notify(ENDED.notice, {}) == []
