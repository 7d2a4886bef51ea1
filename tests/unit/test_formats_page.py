"""docs/reference/formats.md names the fields that the code writes, with their types where it says them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hardcase.config import IngestConfig
from hardcase.data import cases, completions, evaluations, quarantine, snapshot
from hardcase.data.scores import PARTS
from hardcase.formats import SNAPSHOT_FORMAT
from hardcase.provenance import attestations, statement
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.signing import Keyring, make_key, open_keyring
from hardcase.provenance.statement import Provenance
from hardcase.registry import ledger, runs
from hardcase.registry.ledger import Move, Version
from hardcase.registry.runs import StepRecord
from hardcase.report.summary import summarise_run
from hardcase.stats.calibration import calibrate
from hardcase.steps.ingest import run as ingest

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
TYPES = {
    "list<element: string>": "list of string",
    "list<item: string>": "list of string",
    "list<item: bool>": "list of bool",
}


def table(name: str) -> list[list[str]]:
    """The rows of the table below `<!-- fields: name -->`, the first cell of each without backticks."""
    lines = PAGE.split(f"<!-- fields: {name} -->\n\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return [[row[0].strip("`"), *row[1:]] for row in rows]


def documented(name: str) -> list[str]:
    return [row[0] for row in table(name)]


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    make_key(tmp_path)
    return open_keyring(str(tmp_path / "signing.pem"), [])


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("index", snapshot.INDEX),
        ("shard", snapshot.SHARD),
        ("quarantine", quarantine.SCHEMA),
        ("completions", completions.SCHEMA),
        ("mined", cases.SCHEMA),
        ("evaluation", evaluations.SCHEMA),
    ],
)
def test_columns_and_types_of_tables_are_documented(name: str, schema: pa.Schema) -> None:
    types = ["list of struct" if field.name == "images" else str(field.type) for field in schema]
    expected = [[field.name, TYPES.get(kind, kind)] for field, kind in zip(schema, types, strict=True)]
    assert [row[:2] for row in table(name)] == expected
    for described, struct in (("index", snapshot.STATS), ("shard", snapshot.SHARD.field("images").type.value_type)):
        (images,) = (row[2] for row in table(described) if row[0] == "images")
        assert all(f"`{field.name}`" in images for field in struct)


def test_fields_of_signed_records_are_documented(keys: Keyring) -> None:
    link = keys.open_envelope(Attestation("s", {}, {}, {}, {}).sign(keys), "it")
    assert documented("attestation") == list(_ordered(link["predicate"], documented("attestation")))
    signed: dict[str, Any] = Provenance("0" * 64, {}, {}, {}, {}, "r").statement({})["predicate"]
    paths = {f"{part}.{key}" for part, content in signed.items() for key in content}
    assert sorted(documented("statement")) == sorted(paths)
    assert documented("ledger") == ["sequence", "previous", *Move.model_fields]
    assert documented("version") == list(Version.model_fields)


def test_fields_of_a_snapshot_manifest_are_documented(tmp_path: Path) -> None:
    places = tmp_path / "manifest", tmp_path / "quarantine", tmp_path / "scratch"
    ingest("procedural://?samples=4&seed=0", str(tmp_path / "store"), IngestConfig(), *places)
    written = {field for fields in documented("snapshot") for field in fields.replace("`", "").split(", ")}
    assert written == set(json.loads(places[0].read_bytes()))


def _ordered(keys: Any, order: list[str]) -> list[str]:
    return sorted(keys, key=order.index)


def test_fields_of_other_records_are_documented() -> None:
    assert documented("step") == ["format", *(field.name for field in fields(StepRecord))]
    asked = dict.fromkeys(("pipeline", "profile", "source", "seed", "settings"))
    assert documented("run") == list(summarise_run("r", asked, "s", {}, {}, None))
    assert [field for field in documented("scores") if field in PARTS] == list(PARTS)


def test_format_versions_are_documented() -> None:
    versions = {
        "attestation of a step": attestations.FORMAT,
        "statement of a model": statement.FORMAT,
        "ledger entry": ledger.FORMAT,
        "snapshot manifest": SNAPSHOT_FORMAT,
        "run record": runs.RUN_FORMAT,
        "step record": runs.STEP_FORMAT,
    }
    for record, version in versions.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {record} |")]
        assert row.split("|")[4].strip() == str(version), record
    assert f"`{statement.BUILD}v{statement.FORMAT}`" in PAGE
    assert f"`{ledger.ENTRY}v{ledger.FORMAT}`" in PAGE
    kinds = (
        statement.FILE,
        statement.FOLDER,
        statement.SNAPSHOT,
        statement.ENVELOPE,
        statement.SLSA,
        attestations.LINK,
    )
    assert [kind for kind in kinds if f"`{kind}`" not in PAGE] == []


def test_fields_of_a_calibration_are_those_that_evaluate_writes() -> None:
    label = {"aspect": "physical_shadow", "group": "g", "answer": ["A"]}
    written = calibrate([label], [[frozenset("A")]], precision=0.9, assurance=0.9, resamples=100, seed=0)
    assert documented("calibration") == list(written)
