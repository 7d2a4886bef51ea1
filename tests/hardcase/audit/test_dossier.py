"""The dossier is readable, says what was measured, and is the same for the same facts."""

import json
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hardcase.audit.dossier import DossierFacts, dossier
from hardcase.audit.sbom import packages

SCORE = {
    "overall": 70.25,
    "exact_match": 0.6,
    "by_aspect": {"physical_shadow": 64.0},
    "intervals": {"overall": [68.0, 72.5], "exact_match": [0.55, 0.65], "by_aspect": {"physical_shadow": [60.0, 68.0]}},
}
FACTS = DossierFacts(
    name="image-screener",
    version=3,
    digest="d" * 64,
    verdict="promoted",
    reasons=["overall +2.0 against champion image-screener:2"],
    differences=None,
    against=2,
    scores={"samples": 400, "groups": 100, "chance": SCORE, "sft": SCORE, "grpo": SCORE},
    snapshot={"splits": {"train": 1200, "eval": 400}},
    snapshot_id="5" * 64,
    source="s3://bucket/samples",
    config={"model": {"checkpoint": "OpenGVLab/InternVL3-2B-hf"}, "sft": {"steps": 100.0}, "grpo": {"reward": "exact"}},
    seed=7,
    commit="abc",
    clean=False,
    code="c" * 64,
    run="run-1",
    drift={"tests": [{"name": "partial credit", "drifted": True}, {"name": "exact match", "drifted": False}]},
    mined={"training samples": 1200, "always solved": 700, "hard": 200, "suspects": 100},
    evaluation=b"PAR1",
    statement=b"{}",
)


def card(**changes: Any) -> ModelCard:
    return ModelCard(dossier(replace(FACTS, **changes))["README.md"].decode())


def test_card_is_one_that_hugging_face_reads() -> None:
    read = card()
    assert (read.data.license, read.data.base_model) == ("apache-2.0", "OpenGVLab/InternVL3-2B-hf")
    values = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert values["overall partial credit"] == 70.25
    assert read.data.eval_results[0].dataset_revision == FACTS.snapshot_id
    for said in (
        "70.2 [68.0, 72.5]",
        "| sft.steps | 100 |",
        "Intended use",
        "Limits",
        "hardcase audit image-screener:3",
    ):
        assert said in read.text


def test_card_of_a_model_from_nothing_names_no_base_and_says_that_scenes_are_drawn() -> None:
    read = card(config={"model": {"tiny": {}}}, source="procedural://?samples=9")
    assert read.data.base_model is None
    assert "These are drawn scenes" in read.text
    assert "These are drawn scenes" not in card().text


def test_summary_says_what_was_decided_why_and_on_what() -> None:
    text = dossier(FACTS)["summary.md"].decode()
    for said in ("version 3: promoted", "overall +2.0", "version 2, the champion", "Drift told of: partial credit."):
        assert said in text
    for digest in (FACTS.digest, FACTS.snapshot_id, FACTS.code):
        assert digest in text
    assert "with changes that were not committed" in text


def test_scores_that_are_no_numbers_are_shown_as_missing() -> None:
    nothing = {"overall": float("nan"), "exact_match": None, "by_aspect": {}, "intervals": None}
    files = dossier(replace(FACTS, scores={"grpo": nothing}, verdict="held"))
    assert json.loads(files["scores.json"])["grpo"]["overall"] is None
    assert "| overall (0–100) | – |" in files["README.md"].decode()
    assert ModelCard(files["README.md"].decode()).data.eval_results is None


@pytest.mark.parametrize(
    "text", ["a | b", "[x](http://y)", "<script>", "# head", "two\nlines", "`code`", 'q: "x"\n---\n']
)
def test_text_from_data_stays_text(text: str) -> None:
    read = card(source=text, reasons=[text])
    assert len(read.data.eval_results) == 3
    assert read.data.license == "apache-2.0"
    table = [
        line for line in dossier(replace(FACTS, source=text))["summary.md"].decode().splitlines() if "| data |" in line
    ]
    assert len(table) == 1
    assert table[0].replace("\\|", "").count("|") == 3
    assert "<script>" not in read.text.replace("\\<script\\>", "")


def test_same_facts_give_the_same_bytes() -> None:
    assert dossier(FACTS) == dossier(replace(FACTS))


def test_bill_of_materials_names_what_is_installed_and_is_valid() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bom = dossier(FACTS)["sbom.cdx.json"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom.decode()) is None
    named = packages(bom)
    assert len(named) > 150
    assert named["trl"].count(".") == 2
    content = json.loads(bom)
    torch = next(each for each in content["components"] if each["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@")
    needs = {each["ref"]: each.get("dependsOn", []) for each in content["dependencies"]}
    assert any(ref.startswith("numpy@") for ref in needs[next(ref for ref in needs if ref.startswith("pandas@"))])
    assert content["metadata"]["component"]["name"] == "hardcase"
