"""The dossier is readable, says what was measured, and is the same for the same account."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hardcase.data.cases import MinedCase, write_cases
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.statement import Resource
from hardcase.registry.account import Account
from hardcase.registry.dossier import _escape, make_dossier
from hardcase.store.digest import bytes_digest
from hardcase.store.store import open_store

SCORE = {
    "overall": 70.25,
    "exact_match": 0.6,
    "by_aspect": {"physical_shadow": 64.0},
    "intervals": {"overall": [68.0, 72.5], "exact_match": [0.55, 0.65], "by_aspect": {"physical_shadow": [60.0, 68.0]}},
}
SCORES = {"samples": 400, "groups": 100, "chance": SCORE, "sft": SCORE, "final": SCORE}
SNAPSHOT = {"splits": {"train": 1200, "eval": 400}}
DRIFT = {"tests": [{"name": "partial credit", "drifted": True}, {"name": "exact match", "drifted": False}]}
CONFIG = {"model": {"checkpoint": "OpenGVLab/InternVL3-2B-hf"}, "sft": {"steps": 100.0}, "grpo": {"reward": "exact"}}
MODEL, CODE = "d" * 64, "c" * 64
DIFFERENCE = {"value": 2.0, "low": -1.04, "high": 5.0}
COMPARED = {
    "overall": DIFFERENCE,
    "exact_match": {"value": 0.01, "low": -0.02, "high": 0.04},
    "by_aspect": {"physical_shadow": DIFFERENCE, "placement_layout": None},
    "paired": True,
    "samples": 390,
    "groups": 98,
}


Dossier = Callable[..., dict[str, bytes]]
Card = Callable[..., ModelCard]


@pytest.fixture
def dossier(tmp_path: Path) -> Dossier:
    """Makes the dossier of a version whose products are in a store."""
    store = open_store(str(tmp_path / "store"))

    def make(
        number: int = 3,
        source: str = "s3://bucket/samples",
        config: Any = CONFIG,
        scores: Any = SCORES,
        drift: Any = DRIFT,
        snapshot: Any = SNAPSHOT,
        **gate: Any,
    ) -> dict[str, bytes]:
        write_cases([MinedCase("a", ["A"], 1.0, 1.0, hard=False, suspect=False)], tmp_path / "mined")
        contents = {name: json.dumps(value).encode() for name, value in (("scores", scores), ("drift", drift))}
        contents |= {"snapshot": json.dumps(snapshot).encode(), "evaluation": b"PAR1"}
        contents["mined"] = (tmp_path / "mined").read_bytes()
        digests = {"model": MODEL} | {name: store.put_object(content) for name, content in contents.items()}
        links = {
            "ingest": Attestation("ingest", {}, {"snapshot": digests["snapshot"]}, {"source": [source, ""]}, {}),
            "grpo": Attestation("grpo", {}, {"model": MODEL}, {}, {"commit": "abc", "clean": "no"}),
        }
        objects = {name: Resource(name, digest) for name, digest in digests.items()}
        account = Account(links, objects, {"seed": 7, "code": CODE}, {"run": "run-1"}, config, store)
        reasons = ["overall +2.0 against champion image-screener:2"]
        judged = {"verdict": "promoted", "reasons": reasons, "warnings": [], "against": 2, "differences": None, **gate}
        return make_dossier(account, "image-screener", number, judged, b"{}")

    return make


@pytest.fixture
def card(dossier: Dossier) -> Card:
    return lambda **changes: ModelCard(dossier(**changes)["README.md"].decode())


def test_card_is_one_that_hugging_face_reads(card: Card) -> None:
    read = card()
    assert (read.data.license, read.data.base_model) == ("apache-2.0", "OpenGVLab/InternVL3-2B-hf")
    values = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert values["overall partial credit"] == 70.25
    assert read.data.eval_results[0].dataset_revision == bytes_digest(json.dumps(SNAPSHOT).encode())
    for said in (
        "70.2 [68.0, 72.5]",
        "| sft.steps | 100 |",
        "Intended use",
        "Limits",
        "hardcase screen --model image-screener:3",
        "| starts from | OpenGVLab/InternVL3-2B-hf |",
        "hardcase audit image-screener:3",
        "only 1 training samples, drawn at random, were mined",
    ):
        assert said in read.text


def test_card_of_a_model_from_nothing_names_no_base_and_says_that_scenes_are_drawn(card: Card) -> None:
    read = card(config={"model": {"tiny": {}}}, source="procedural://?samples=9")
    assert read.data.base_model is None
    assert "These are drawn scenes" in read.text
    assert "These are drawn scenes" not in card().text


@pytest.mark.parametrize("folder", ["/home/models/base", "./base", "../base", "base", "a/b/c", "~/base", "s3://b/base"])
def test_checkpoint_in_a_folder_is_no_base_model_of_the_hub(folder: str, card: Card) -> None:
    assert card(config={"model": {"checkpoint": folder}}).data.base_model is None


def test_files_are_those_that_the_docs_promise_and_pass_on_what_was_measured_and_signed(dossier: Dossier) -> None:
    files = dossier()
    assert list(files) == [
        "README.md",
        "summary.md",
        "gate.json",
        "scores.json",
        "evaluation.parquet",
        "sbom.cdx.json",
        "provenance.dsse.json",
    ]
    assert (files["evaluation.parquet"], files["provenance.dsse.json"]) == (b"PAR1", b"{}")
    assert json.loads(files["gate.json"])["reasons"] == ["overall +2.0 against champion image-screener:2"]


def test_settings_of_adapters_are_told_one_by_one(card: Card) -> None:
    text = card(config={"sft": {"lora": {"rank": 16}, "learning_rate": float("nan")}}).text
    assert "| sft.lora.rank | 16 |" in text
    assert "| sft.learning_rate | – |" in text


def test_keys_of_the_source_that_were_ignored_are_named(card: Card) -> None:
    assert "ignored: a|b, *c*." in _shown(card(snapshot={**SNAPSHOT, "unknown_keys": ["a|b", "*c*"]}).text)


def test_summary_says_what_changed_against_the_champion(dossier: Dossier) -> None:
    text = dossier(differences=COMPARED)["summary.md"].decode()
    for said in (
        "Version 3 minus version 2, the champion of that moment, on 390 samples that both answered",
        "| overall (0–100) | +2.0 [-1.0, +5.0] |",
        "| exact match (0–1) | +0.010 [-0.020, +0.040] |",
        "| placement layout | – |",
        "hardcase audit image-screener --diff 2 3",
    ):
        assert said in text
    apart = dossier(differences={**COMPARED, "paired": False})["summary.md"].decode()
    assert "on 390 samples (each answered its own)" in apart


def test_what_people_should_know_before_they_trust_a_model_is_in_card_and_summary(dossier: Dossier) -> None:
    files = dossier(warnings=["grpo: GRPO changed <nothing>"])
    for name in ("README.md", "summary.md"):
        assert "- Warning: grpo: GRPO changed \\<nothing\\>\n" in files[name].decode()
        assert "Warning" not in dossier()[name].decode()


def test_interval_that_cannot_be_estimated_is_shown_as_such(dossier: Dossier) -> None:
    unknown = {"overall": None, "exact_match": [0.55, 0.65], "by_aspect": {"physical_shadow": None}}
    score = {**SCORE, "intervals": unknown}
    few = {**COMPARED, "overall": {"value": 2.0, "low": None, "high": None}}
    text = dossier(scores={"sft": None, "final": score}, differences=few)["summary.md"].decode()
    assert "| overall (0–100) | 70.2 [too few groups] |" in text
    assert "| exact match (0–1) | 0.600 [0.550, 0.650] |" in text
    assert "| overall (0–100) | +2.0 [too few groups] |" in text


def test_summary_of_a_first_version_does_not_claim_that_anything_was_compared(dossier: Dossier) -> None:
    text = dossier(number=1, against=None, drift={"tests": []})["summary.md"].decode()
    assert "There was no champion to compare with." in text
    assert "Drift was not tested" in text
    assert "--diff" not in text


def test_summary_says_what_was_decided_why_and_on_what(dossier: Dossier) -> None:
    text = dossier()["summary.md"].decode()
    for said in ("version 3: promoted", "overall +2.0", "version 2, the champion", "Drift alarms: partial credit."):
        assert said in text
    for digest in (MODEL, bytes_digest(json.dumps(SNAPSHOT).encode()), CODE):
        assert digest in text
    assert "with changes that were not committed" in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_scores_that_are_no_numbers_are_shown_as_missing(bad: float | None, dossier: Dossier) -> None:
    nothing = {"overall": bad, "exact_match": bad, "by_aspect": {"physical_shadow": bad}, "intervals": None}
    found = {"overall": {"value": bad, "low": bad, "high": bad}, "by_aspect": {}, "paired": True, "samples": 4}
    files = dossier(scores={"sft": None, "final": nothing}, differences=found, verdict="rejected")
    assert json.loads(files["scores.json"])["final"]["overall"] is None
    assert json.loads(files["gate.json"])["differences"]["overall"]["value"] is None
    for name in ("README.md", "summary.md"):
        assert "| overall (0–100) | – |" in files[name].decode()
    assert ModelCard(files["README.md"].decode()).data.eval_results is None


@pytest.mark.parametrize(
    "text", ["a | b", "[x](http://y)", "<script>", "# head", "two\nlines", "`code`", 'q: "x"\n---\n']
)
def test_text_from_data_stays_text(text: str, card: Card, dossier: Dossier) -> None:
    read = card(source=text, reasons=[text])
    assert len(read.data.eval_results) == 3
    assert read.data.license == "apache-2.0"
    table = [line for line in dossier(source=text)["summary.md"].decode().splitlines() if "| data |" in line]
    assert len(table) == 1
    assert table[0].replace("\\|", "").count("|") == 3
    assert "<script>" not in read.text.replace("\\<script\\>", "")


def test_same_account_gives_the_same_bytes(dossier: Dossier) -> None:
    assert dossier() == dossier()


def _shown(text: str) -> str:
    """What a reader of the page sees of Markdown, without its marks."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return "".join(each.content for token in tokens for each in token.children or [])


# The marks of Markdown and of HTML, what cannot be seen, and letters to put between them.
TEXT = st.text(st.sampled_from("\\`*_[]()<>|#~&;:!-+=.1aé \t\n\r\x00\u202e\u2028\ufeff"), max_size=12)


@settings(max_examples=400, deadline=None)
@given(TEXT)
@example("&lt;b&gt;")
@example("[x]: /y")
@example("[a](b)")
@example("![a](b)")
@example("1. a")
@example("~~~")
@example("a_b_c")
def test_reader_sees_text_from_data_as_it_was_in_a_list_and_in_a_table(text: str) -> None:
    seen = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    assert _shown(f"- {_escape(text)}\n") == seen
    assert _shown(f"| a | b |\n|---|---|\n| c | {_escape(text)} |\n") == f"abc{seen}"


def test_text_that_means_nothing_in_markdown_is_left_as_it_is() -> None:
    plain = "overall +0.5 [-1.0, +2.0] against champion my_model:1, s3://bucket/a_b?c=1&d=2 (p = 0.003)"
    assert _escape(plain) == plain
