"""How a run on a cluster ended, as people read it; and that telling them gives no secret away."""

from dataclasses import replace
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink

from components.notes import Note, leave
from components.report.conclusion import SILENT, Conclusion, conclude
from components.report.notify import notify
from hardcase.data.store import Store, open_store
from hardcase.errors import HardcaseError

ENDED = Conclusion("run-1", "FAILED", {}, "sft", "out of\nmemory", ["last words"], {}, {}, "https://ui.example.org/#/r")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("HARDCASE_RUN_DIR", raising=False)
    monkeypatch.setenv("HARDCASE_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("HARDCASE_RUN", "run-1")
    return open_store((tmp_path / "store").as_uri())


def concluded(store: Store, state: str, told: str = "") -> tuple[Conclusion, str, str]:
    folder = Path(store.uri.removeprefix("file://")).parent
    html, summary = folder / "page.html", folder / "summary.md"
    ended = conclude(store, "run-1", state, told, {"profile": "tiny"}, "https://ui.example.org", html, summary)
    return ended, html.read_text(encoding="utf-8"), summary.read_text(encoding="utf-8")


def test_a_step_that_left_no_word_was_killed_and_the_engine_is_quoted(store: Store) -> None:
    leave(Note("ingest"), {})
    ended, page, summary = concluded(store, "FAILED", "OOMKilled")
    assert ended.step == ""
    assert ended.message == f"{SILENT}: OOMKilled"
    assert "OOMKilled" in page and "OOMKilled" in summary


def test_of_several_attempts_the_last_counts_and_what_was_made_is_on_the_page(store: Store, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text('{"chance": null, "sft": null, "grpo": {"overall": 70.5, "exact_match": 0.75}}')
    leave(Note("register", 1, "first"), {})
    leave(Note("register", 1, "cannot account for the model", ["a", "b"]), {"evaluate.scores": tmp_path / "scores"})
    ended, page, summary = concluded(store, "FAILED")
    assert "cannot account for the model" in page, "though these scores are too few for its figures"
    assert ended.headline == "Run run-1 failed at register: cannot account for the model"
    assert "| grpo | 70.5 | 0.750 |" in summary
    assert "Last lines of `register`:\n\n```\na\nb\n```" in summary


def test_a_cancelled_run_is_not_called_a_failure(store: Store) -> None:
    ended, _, _ = concluded(store, "CANCELLED")
    assert ended.headline == "Run run-1 was cancelled"


def test_a_held_model_is_said_to_be_held() -> None:
    registered = {"name": "screener", "version": 3, "verdict": "held", "reasons": ["no better"]}
    ended = replace(ENDED, state="SUCCEEDED", registered=registered)
    assert ended.headline == "Run run-1 succeeded: screener:3 was held by the gate: no better"


def test_a_webhook_that_fails_is_named_without_its_address(unused_port: int) -> None:
    secret = f"http://127.0.0.1:{unused_port}/services/T0/secret"
    with pytest.raises(HardcaseError, match="webhook: ConnectionError") as failure:
        notify(ENDED, {"HARDCASE_WEBHOOK": secret})
    assert "secret" not in str(failure.value)


def test_no_password_goes_over_a_connection_that_cannot_be_encrypted(unused_port: int) -> None:
    server = Controller(Sink(), hostname="127.0.0.1", port=unused_port)
    server.start()
    there = {"HARDCASE_SMTP_HOST": "127.0.0.1", "HARDCASE_SMTP_PORT": str(unused_port)}
    there |= {"HARDCASE_MAIL_FROM": "a@example.org", "HARDCASE_MAIL_TO": "b@example.org"}
    try:
        assert notify(ENDED, there) == ["mail"]
        with pytest.raises(HardcaseError, match=r"(?i)starttls"):
            notify(ENDED, {**there, "HARDCASE_SMTP_USER": "u", "HARDCASE_SMTP_PASSWORD": "p"})
    finally:
        server.stop()


def test_mail_without_addresses_is_refused_by_name() -> None:
    with pytest.raises(HardcaseError, match="HARDCASE_MAIL_FROM and HARDCASE_MAIL_TO"):
        notify(ENDED, {"HARDCASE_SMTP_HOST": "127.0.0.1"})


def test_nobody_is_told_where_nobody_is_named() -> None:
    assert notify(ENDED, {}) == []
