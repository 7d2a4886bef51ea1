"""The report: one page that stands alone, also of a run that stopped early, and that shows pictures, not code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import IngestConfig
from hardcase.data.cases import MinedCase, read_cases, write_cases
from hardcase.data.evaluations import write_evaluation
from hardcase.data.snapshot import Snapshot
from hardcase.report.page import run
from hardcase.steps.ingest import run as ingest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A snapshot of a few scenes, and what mining and evaluation might say of them."""
    folder = tmp_path_factory.mktemp("report")
    store = str(folder / "store")
    (folder / "scratch").mkdir()
    snapshot, quarantine = folder / "manifest.json", folder / "quarantine.parquet"
    ingest(
        "procedural://?samples=12&seed=1", store, IngestConfig(eval_share=0.5), snapshot, quarantine, folder / "scratch"
    )
    opened = Snapshot.open(snapshot, store)
    cases = [
        MinedCase(sample.id, ["A", None], 0.3, 0.25, hard=True, suspect=False)
        for sample in opened.open_samples("train")
    ]
    answer = {
        "truth": [],
        "answer": None,
        "text": "<think><script>alert(1)</script></think>",
        "dpa": 0.0,
        "exact": False,
    }
    rows = [
        {"id": sample.id, "aspect": sample.aspect, "group": "g", **answer} for sample in opened.open_samples("eval")
    ]
    write_cases(cases, folder / "mined.parquet")
    write_evaluation(rows, folder / "evaluation.parquet")
    artifacts = {
        "snapshot": snapshot,
        "quarantine": quarantine,
        "mined": folder / "mined.parquet",
        "evaluation": folder / "evaluation.parquet",
    }
    return {"artifacts": artifacts, "store": store, "folder": folder, "counts": (len(cases), len(rows))}


def test_a_run_that_made_nothing_has_a_page_that_says_why(tmp_path: Path) -> None:
    run({}, {"profile": "tiny", "error": "ingest: no rows; hand in <b>some</b>"}, str(tmp_path), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Failed" in page
    assert "hand in &lt;b&gt;some&lt;/b&gt;" in page


def test_gallery_shows_five_pictures_a_case_and_runs_nothing_that_a_model_wrote(made: dict[str, Any]) -> None:
    page = made["folder"] / "page.html"
    run(made["artifacts"], {"profile": "tiny"}, made["store"], page)
    text = page.read_text()
    mined, evaluated = made["counts"]
    assert len(re.findall(r'<img src="data:image/', text)) == 5 * (min(mined, 12) + min(evaluated, 8))
    assert "<script>" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_page_tells_that_only_some_samples_were_mined_and_why(made: dict[str, Any]) -> None:
    some, page = made["folder"] / "some.parquet", made["folder"] / "some.html"
    write_cases(read_cases(made["artifacts"]["mined"])[:2], some)
    run({**made["artifacts"], "mined": some}, {}, made["store"], page)
    why = f"<dd>2 of {made['counts'][0]}, drawn at random: no weight of GRPO depends on mining</dd>"
    assert why in page.read_text()
    run(made["artifacts"], {}, made["store"], page)
    assert "drawn at random" not in page.read_text()


def test_page_warns_of_a_training_that_taught_little_and_shows_no_interval_on_few_groups(made: dict[str, Any]) -> None:
    """A page of 0.1.0 drew bars of no width, and no word of completions that all were cut."""
    folder, tables = made["folder"], {"by_aspect": {}, "intervals": {"by_aspect": {}}}
    part = {**tables, "overall": 12.5, "exact_match": 0.1}
    part["intervals"] = {"overall": None, "exact_match": [0.05, 0.15], "by_aspect": {}}
    unknown = {"value": 1.0, "low": None, "high": None}
    known = {"value": 0.01, "low": -0.02, "high": 0.03}
    scores = {"samples": 9, "groups": 3, "reward": "subset", "chance": part, "sft": None, "final": {**part, "cut": 0.5}}
    scores["gain"] = {"overall": unknown, "exact_match": known, "by_aspect": {}}
    log = {"phase": "grpo", "step": 1, "reward": 0.0, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 0.25}
    (folder / "scores").write_text(json.dumps(scores))
    (folder / "log").write_text(json.dumps({**log, "weights_changed": False}) + "\n")
    run({"scores": folder / "scores", "grpo_log": folder / "log"}, {}, made["store"], folder / "warned.html")
    text = (folder / "warned.html").read_text()
    warnings = re.findall(r"<li>(.*?)</li>", text)
    assert [warning[:25] for warning in warnings] == [
        "evaluate: overall 12.5 [t",
        "grpo: 25% of the completi",
        "evaluate: 50% of the answ",
        "grpo: 100% of the groups ",
        "grpo: the final weights e",
    ]
    assert '<td class="n" data-label="overall">12.5</td><td class="n" data-label="95%">too few groups</td>' in text
    assert 'data-label="exact match">0.100</td><td class="n" data-label="95%">0.050 – 0.150</td>' in text
    assert "Answers cut at the limit of tokens: final 50.0%." in text
    assert "overall +1.0 (too few groups), exact match +0.010 (-0.020 to +0.030)" in text


@pytest.mark.parametrize(("low", "heading"), [(20.5, "Promoted"), (19.5, "Promoted, not above chance")])
def test_promotion_of_a_model_no_better_than_guessing_is_not_shown_in_green(
    made: dict[str, Any], low: float, heading: str
) -> None:
    folder, gate = made["folder"], {"verdict": "promoted", "reasons": ["the first champion"], "against": None}
    chance = {"overall": 18.0, "exact_match": 0.0625}
    chance |= {"by_aspect": {}, "intervals": {"overall": [16.0, 20.0], "exact_match": None, "by_aspect": {}}}
    final = {**chance, "overall": 25.0, "valid": 0.5, "intervals": {**chance["intervals"], "overall": [low, 30.0]}}
    scores = {
        "samples": 9,
        "groups": 3,
        "reward": "subset",
        "chance": chance,
        "sft": None,
        "final": final,
        "gain": None,
    }
    (folder / "scores").write_text(json.dumps(scores))
    named = {"name": "screener", "version": 3, "alias": "champion", "digest": "d"}
    (folder / "registration").write_text(json.dumps({**gate, **named}))
    run({name: folder / name for name in ("scores", "registration")}, {}, made["store"], folder / "gate.html")
    text = (folder / "gate.html").read_text()
    assert f"<strong>{heading}</strong>" in text
    assert ('class="verdict promoted"' in text) == (heading == "Promoted")
    assert "Valid answers: final 50.0%." in text


def test_the_same_artifacts_give_the_same_bytes(made: dict[str, Any]) -> None:
    pages = [made["folder"] / name for name in ("one.html", "two.html")]
    for page in pages:
        run(made["artifacts"], {"profile": "tiny"}, made["store"], page)
    assert pages[0].read_bytes() == pages[1].read_bytes()
