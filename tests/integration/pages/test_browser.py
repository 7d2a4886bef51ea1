"""Pages as a browser lays them out, at a desk and on a phone: nothing is cut, too small, or drawn over."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from hardcase.audit.examine import examine
from hardcase.audit.page import render_page
from hardcase.config import ValidateConfig
from hardcase.errors import InputError
from hardcase.provenance.attestations import follow
from hardcase.provenance.signing import Keyring, read_public_keys
from hardcase.registry.runs import list_runs
from hardcase.report.page import run as write_report
from hardcase.report.summary import fetch_artifacts
from hardcase.steps.validate import run as validate
from hardcase.store.store import Store, open_store

RELEASED = Path(__file__).parents[2] / "compat" / "2"
WIDTHS = (1280, 390)
TEST = {"statistic": -4.0, "p_value": 0.0001, "threshold": 0.004, "drifted": True}
DRIFT = {
    "drifted": True,
    "reference": "a" * 64,
    "tests": [
        {**TEST, "name": "partial credit", "reference": 0.712, "current": 0.503},
        {**TEST, "name": "aspect mix", "reference": "extension_rationality: 25.0%", "current": "50.0%"},
    ],
}
# Elements with text of their own, and the size of that text on the screen, in pixels.
TEXTS = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
        const matrix = e.getScreenCTM ? e.getScreenCTM() : {a: 1};
        return [e.textContent.trim().slice(0, 60), parseFloat(getComputedStyle(e).fontSize) * matrix.a] })"""
BOXES = """selector => [...document.querySelectorAll(selector)].map(e => {
    const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] })"""
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
    && (e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth
        && getComputedStyle(e).overflowX !== 'visible')).map(e => e.outerHTML.slice(0, 99))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Chromium: that of the `PATH`, or the one that Playwright installed."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    with tarfile.open(RELEASED / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def keys() -> Keyring:
    return Keyring(read_public_keys([RELEASED / "signing.pub"]))


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return open_store(str(folder / "store"), cached=False)


@pytest.fixture(scope="module")
def report(folder: Path, store: Store, keys: Keyring) -> Path:
    """The report of a run of that store, with drift."""
    (run,) = (run for run in list_runs(store) if run["status"] == "succeeded")
    links = follow(store, keys, [run["attestation"]])
    artifacts = fetch_artifacts(store, links.values(), {}, folder)
    (folder / "drift").write_text(json.dumps(DRIFT))
    path = folder / "report.html"
    write_report({**artifacts, "drift": folder / "drift"}, {"run": run["run_id"]}, store.uri, path)
    return path


@pytest.fixture(scope="module")
def data_docs(report: Path, store: Store) -> Path:
    """The Data Docs of the snapshot of that run, which is too small and fails."""
    docs = report.with_name("docs")
    with pytest.raises(InputError):
        validate(report.with_name("snapshot"), store.uri, ValidateConfig(), report.with_name("result"), docs)
    return docs / "index.html"


@pytest.fixture
def audit(folder: Path, store: Store, keys: Keyring) -> Path:
    path = folder / "audit.html"
    path.write_text(render_page(examine(store, "image-screener:1", keys)))
    return path


def opened(browser: Browser, path: Path, width: int, scheme: Any = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    return page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "data_docs", "audit"])
def test_page_needs_no_sideways_scroll_and_no_text_is_smaller_than_12_pixels(
    browser: Browser, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    page = opened(browser, request.getfixturevalue(name), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    texts = page.evaluate(TEXTS)
    assert len(texts) > 60
    assert [text for text, size in texts if size < 11.99] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_report_has_a_legend_for_its_curves_and_names_without_underscores(
    browser: Browser, report: Path, width: int
) -> None:
    page = opened(browser, report, width)
    assert page.get_by_text("mean of the last 20").is_visible()
    assert page.get_by_text("95% bootstrap interval").is_visible()
    shown = page.locator("main").inner_text()
    assert "extension rationality: 25.0%" in shown
    assert not [word for word in shown.split() if "_" in word and "max_new_tokens" not in word]
    colours = page.eval_on_selector_all(".legend i", "all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours[-2:])) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_of_the_audits_graph_crosses_a_box_and_no_text_leaves_its_own(
    browser: Browser, audit: Path, width: int, scheme: str
) -> None:
    page = opened(browser, audit, width, scheme)
    boxes, lines = page.evaluate(BOXES, "rect"), page.evaluate(BOXES, ".path")
    assert len(boxes) > 25
    assert len(lines) > 40
    assert max(line[2] for line in lines) <= min(box[0] for box in boxes) + 1
    assert all(upper[3] < lower[1] for upper, lower in pairwise(boxes))
    for number, box in enumerate(boxes, start=1):
        for text in page.evaluate(BOXES, f"svg g:nth-of-type({number}) text"):
            assert box[0] < text[0] < text[2] < box[2]
    page.locator("#large").check()
    enlarged = page.evaluate(BOXES, "rect")
    assert enlarged[0][3] - enlarged[0][1] > 1.5 * (boxes[0][3] - boxes[0][1])
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_objects_with_equal_content_are_boxes_of_their_own(browser: Browser, audit: Path) -> None:
    page = opened(browser, audit, 390)
    labels = page.locator("svg g text:first-of-type").all_text_contents()
    assert {"evaluation", "baseline", "model", "sft model"} <= set(labels)
    same = [
        page.locator(f"svg g:has-text('{name}') .digest").first.text_content() for name in ("evaluation", "baseline")
    ]
    assert same[0] == same[1], "a model that learned nothing answers as before"


@pytest.mark.parametrize("what", ["sbom", "dossier", "public keys", "statement", "snapshot", "record of sft"])
def test_broken_object_is_red_wherever_it_is(
    browser: Browser, folder: Path, store: Store, keys: Keyring, what: str
) -> None:
    audit = examine(store, "image-screener:1", keys)
    place = next(finding.place for finding in audit.tree.parts if finding.what == what)
    place = f"keys/{next((folder / 'store' / 'keys').iterdir()).name}" if what == "public keys" else place
    damaged = folder / "store" / place
    content = damaged.read_bytes()
    damaged.write_bytes(b"{}")
    try:
        path = folder / "broken.html"
        path.write_text(render_page(examine(store, "image-screener:1", keys)))
    finally:
        damaged.write_bytes(content)
    page = opened(browser, path, 390)
    red = "getComputedStyle(e.querySelector('rect')).stroke"
    strokes = dict(
        page.eval_on_selector_all("svg g", f"all => all.map(e => [e.querySelector('text').textContent, {red}])")
    )
    broken = {label for label, stroke in strokes.items() if stroke == "rgb(194, 47, 47)"}
    assert what in broken
    assert broken <= {what, "chain of steps", "dossier"}  # which has a copy
    assert len(strokes) > len(broken)
