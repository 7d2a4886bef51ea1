"""The expectation suite: what passes, what each fault is called, and outputs that are the same bytes everywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import ValidateConfig
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.steps.validate import flatten, run
from hardcase.store.digest import canonical_json
from hardcase.task.sample import ASPECTS
from tests.support.snapshots import write_snapshot

Row = dict[str, Any]
BOUNDS = ValidateConfig(min_train_rows=20, min_eval_rows=10)
ANSWERS: tuple[list[str], ...] = ([], ["A"], ["B", "C"], ["A", "D"], ["C"], ["B", "D"])
HOSTILE = "<script src=http://example.com/x.js></script> $v__0"


def _picture(name: str) -> Row:
    facts = {"format": "JPEG", "width": 64, "height": 48, "phash": "00ff00ff00ff00ff", "mean": 120.0, "std": 40.0}
    return {"bytes": name.encode(), "sha256": sha256(name.encode()).hexdigest(), **facts}


def _rows() -> list[Row]:
    return [
        {
            "id": f"s{n}",
            "row": n + 1,
            "aspect": ASPECTS[n % 4],
            "answer": ANSWERS[n % len(ANSWERS)],
            "reasoning": "The shadow falls the wrong way." if n % 2 else None,
            "split": "eval" if n % 3 == 0 else "train",
            "group": f"g{n}",
            "images": [_picture(f"{n} {place}") for place in range(5)],
        }
        for n in range(48)
    ]


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    folder: Path
    message: str | None
    result: Row
    page: str

    @property
    def failed(self) -> set[str]:
        return {each["column"] for each in self.result["expectations"] if not each["success"]}


def _validated(folder: Path, rows: list[Row]) -> Outcome:
    manifest, message = write_snapshot(folder, rows), None
    try:
        run(manifest, str(folder / "store"), BOUNDS, folder / "result.json", folder / "docs")
    except InputError as error:
        message = str(error)
    result = json.loads((folder / "result.json").read_bytes())
    return Outcome(folder, message, result, (folder / "docs" / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return _validated(tmp_path_factory.mktemp("sound"), _rows())


def _faulty_rows() -> list[Row]:
    rows = _rows()
    rows[0]["group"] = rows[1]["group"] = HOSTILE  # 0 is in eval, 1 in train
    rows[3]["images"][0] = rows[4]["images"][0]
    rows[5]["images"][4] = rows[5]["images"][1]
    rows[8] = {**rows[4], "id": "again", "row": 9}
    rows[10]["id"] = "s11"
    rows[13]["images"][2]["width"] = 15
    rows[14]["images"][2].update(width=20_000, height=900)
    rows[16]["images"][0]["height"] = 64 * 21
    rows[17]["images"][1]["mean"] = 256.0
    rows[19]["images"][1]["std"] = -1.0
    rows[20]["answer"] = ["A", "A"]
    rows[22]["images"] = rows[22]["images"][:4]
    rows[35]["images"] = rows[36]["answer"] = rows[37]["group"] = None
    rows[23]["aspect"] = "colour"
    rows[25]["reasoning"] = "x" * 16_385
    for row in rows[26:32]:
        for picture in row["images"]:
            picture["std"] = 0.5
    return rows


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return _validated(tmp_path_factory.mktemp("faulty"), _faulty_rows())


def _skewed_rows() -> list[Row]:
    return [{**row, "aspect": ASPECTS[0], "answer": [], "split": "train"} for row in _rows()[:19]]


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return _validated(tmp_path_factory.mktemp("skewed"), _skewed_rows())


def test_sound_snapshot_passes(sound: Outcome) -> None:
    assert sound.message is None
    assert sound.result["success"] is True
    assert sound.result["rows"] == 48
    assert sound.failed == set()
    assert all(set(e) == {"type", "column", "success", "observed", "bounds"} for e in sound.result["expectations"])
    assert (sound.folder / "result.json").read_bytes() == canonical_json(sound.result)


def test_result_states_what_was_observed_within_what_bounds(sound: Outcome) -> None:
    of_column = {(e["column"], e["type"]): e for e in sound.result["expectations"]}
    share = of_column["aspect_physical_shadow", "expect_column_mean_to_be_between"]
    assert (share["observed"], share["bounds"]) == (0.25, {"min_value": 0.05, "max_value": 0.6})
    assert of_column["rows_eval", "expect_column_sum_to_be_between"]["observed"] == 16
    assert of_column["leaking_group", "expect_column_values_to_be_null"]["observed"] == "0 of 48 unexpected"


FAULTS = {
    "group": "1 of 48",
    "leaking_group": HOSTILE,
    "leaking_original": sha256(b"4 0").hexdigest(),
    "repeated_candidate": "s5",
    "repeated_sample": "s4, again",
    "id": "s11",
    "side_min": "1 of 48",
    "side_max": "20000",
    "ratio_max": "2 of 48",
    "luminance_mean_max": "256",
    "luminance_std_min": "-1",
    "answer": "AA",
    "pictures": "2 of 48",
    "aspect": "colour",
    "reasoning_length": "16385",
    "blank_share": "validate.max_blank_share",
}


@pytest.mark.parametrize("column", FAULTS)
def test_fault_in_rows_is_named_with_what_was_observed(faulty: Outcome, column: str) -> None:
    assert faulty.result["success"] is False
    assert faulty.message is not None
    lines = [line for line in faulty.message.splitlines() if line.startswith(f"- {column}:")]
    assert any(FAULTS[column] in line for line in lines)
    assert all(len(line) < 600 for line in lines)


def test_no_more_than_the_faults_is_named(faulty: Outcome) -> None:
    assert faulty.failed == set(FAULTS)


def test_few_rows_and_skew_are_named_with_the_keys_that_loosen_them(skewed: Outcome) -> None:
    shares = {f"aspect_{aspect}" for aspect in ASPECTS} | {f"flaw_{letter}" for letter in "ABCD"}
    assert skewed.failed == {"rows_train", "rows_eval", "flaw_none", *shares}
    for field in ValidateConfig.model_fields:
        assert field == "max_blank_share" or f"validate.{field}" in str(skewed.message)
    assert "min_value 20), observed 19" in str(skewed.message)


def test_empty_snapshot_fails_as_one_of_too_few_rows(tmp_path: Path) -> None:
    empty = _validated(tmp_path, [])
    assert {"rows_train", "rows_eval"} <= empty.failed
    assert empty.result["rows"] == 0


class _Loads(HTMLParser):
    """Whatever a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "iframe", "img", "object", "embed"}:
            self.found.append(tag)
        self.found += [str(value) for name, value in attrs if name in {"src", "href"} and value != "data:,"]


@pytest.mark.parametrize("outcome", ["sound", "faulty", "skewed"])
def test_page_fetches_and_runs_nothing(outcome: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(outcome).page
    loads = _Loads()
    loads.feed(page)
    assert loads.found == []
    assert "url(" not in page and "@import" not in page


def test_page_shows_every_failure(faulty: Outcome) -> None:
    assert "failed" in faulty.page
    assert faulty.page.count("fa-times") > len(FAULTS)
    assert "&lt;script src=http://example.com/x.js&gt;" in faulty.page


def test_earlier_outputs_are_replaced_and_nothing_half_done_stays(skewed: Outcome) -> None:
    (skewed.folder / "docs" / "old.html").write_text("old")
    _validated(skewed.folder, _skewed_rows())
    assert sorted(path.name for path in skewed.folder.iterdir()) == ["docs", "manifest.json", "result.json", "store"]
    assert [path.name for path in (skewed.folder / "docs").iterdir()] == ["index.html"]


PROGRAM = """
import socket, sys
from pathlib import Path

def refuse(*_):
    raise AssertionError("network")

socket.socket.connect = refuse
from hardcase.steps.validate import run
assert "great_expectations" not in sys.modules
from hardcase.config import ValidateConfig
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
bounds = ValidateConfig.model_validate_json(sys.argv[3])
run(folder / "manifest.json", str(folder / "store"), bounds, out / "result.json", out / "docs")
assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_other_process_writes_the_same_bytes_quietly_without_network_or_torch(sound: Outcome, tmp_path: Path) -> None:
    here, out = tmp_path / "here", tmp_path / "out"
    here.mkdir()
    out.mkdir()
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sound.folder), str(out), BOUNDS.model_dump_json()],
        cwd=here,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "HOME": str(here), "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(here.iterdir()) == []
    for name in ("result.json", "docs/index.html"):
        assert (out / name).read_bytes() == (sound.folder / name).read_bytes()


def _leak_by_group(rows: list[Row]) -> None:
    rows[1]["group"] = rows[0]["group"]


def _share_within_a_split(rows: list[Row]) -> None:
    rows[2]["group"] = rows[1]["group"]
    rows[2]["images"][0] = rows[1]["images"][0]


def _same_pictures_of_other_aspect(rows: list[Row]) -> None:
    rows[2]["images"] = rows[1]["images"]


@pytest.mark.parametrize(
    ("change", "faults"),
    [(_leak_by_group, {"leaking_group"}), (_share_within_a_split, set()), (_same_pictures_of_other_aspect, set())],
)
def test_only_what_crosses_splits_leaks_and_only_same_aspect_repeats(
    tmp_path: Path, change: Callable[[list[Row]], None], faults: set[str]
) -> None:
    rows = _rows()
    change(rows)
    table = flatten(Snapshot.open(write_snapshot(tmp_path, rows), str(tmp_path / "store")).read_table())
    columns = [column for column in map(str, table) if column.startswith(("leaking_", "repeated_"))]
    assert {column for column in columns if table[column].notna().any()} == faults
