"""The report: one page that stands alone, also of a run that stopped early, and that shows pictures, not code."""

import re
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import IngestConfig
from hardcase.data.cases import MinedCase, write_cases
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
        MinedCase(sample.id, ["A", None], 0.3, 0.25, hard=True, suspect=False) for sample in opened.iterate("train")
    ]
    answer = {
        "truth": [],
        "answer": None,
        "text": "<think><script>alert(1)</script></think>",
        "dpa": 0.0,
        "exact": False,
    }
    rows = [{"id": sample.id, "aspect": sample.aspect, "group": "g", **answer} for sample in opened.iterate("eval")]
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


def test_the_same_artifacts_give_the_same_bytes(made: dict[str, Any]) -> None:
    pages = [made["folder"] / name for name in ("one.html", "two.html")]
    for page in pages:
        run(made["artifacts"], {"profile": "tiny"}, made["store"], page)
    assert pages[0].read_bytes() == pages[1].read_bytes()
