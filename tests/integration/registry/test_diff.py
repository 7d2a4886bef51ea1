"""What an auditor is told of two versions: rows, configuration, scores."""

from dataclasses import replace
from pathlib import Path

import pytest

from hardcase.audit.compare import compare_versions
from hardcase.audit.examine import examine
from hardcase.config import IngestConfig, RegisterConfig
from hardcase.data.scenes import write_source
from hardcase.errors import HardcaseError
from hardcase.provenance.attestations import Attestation
from hardcase.steps.ingest import run as ingest
from hardcase.store.digest import bytes_digest
from tests.integration.registry.conftest import House
from tests.support.evaluations import SCORES, evaluated

NAME = RegisterConfig().name


def snapshot(house: House, rows: list[str], folder: Path) -> Path:
    (folder / "manifest.jsonl").write_text("\n".join(rows))
    place = house.root / f"snapshot-{bytes_digest(rows[0].encode())[:8]}"
    ingest(str(folder), house.store.uri, IngestConfig(), place, house.root / "quarantine", house.root / "scratch")
    return place


def test_rows_configuration_and_scores_that_changed_are_named(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_source(folder, samples=8, seed=1)
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    first = snapshot(house, rows[:7], folder)
    changed = rows[1].replace('"answer": []', '"answer": ["B"]')
    if changed == rows[1]:
        changed = (
            rows[1].replace('"answer": ["', '"answer": ["D", "')
            if '"D"' not in rows[1]
            else rows[1].replace('"D"', '"C"')
        )
    second = snapshot(house, [changed, *rows[2:]], folder)

    def trained_longer(links: dict[str, Attestation]) -> None:
        links["sft"] = replace(links["sft"], parameters={**links["sft"].parameters, "config": {"steps": 9}})

    old = {"chance": SCORES["chance"], "grpo": SCORES["final"]}  # as records of before format 2 call the final model
    house.launch("a", evaluated(0.6), snapshot=first, scores=old)
    house.launch(
        "b",
        evaluated(0.8),
        snapshot=second,
        spoil=trained_longer,
        scores={**SCORES, "final": {**SCORES["final"], "overall": 80.0, "exact_match": 0.8}},
    )
    audits = [examine(house.store, f"{NAME}:{number}", house.keys) for number in (1, 2)]
    found = compare_versions(house.store, *audits)
    assert [len(found["data"][how]) for how in ("added", "removed", "changed")] == [1, 1, 1]
    assert found["config"] == {"sft.steps": [None, 9]}
    assert found["scores"] == {"overall": [70.0, 80.0], "exact_match": [0.7, 0.8]}
    assert found["code"] == {"added": [], "removed": [], "changed": []}
    assert set(found["facts"]) == {"model"}


def test_version_that_is_not_whole_is_not_compared(house: House) -> None:
    house.launch("a", evaluated(0.6))
    house.launch("b", evaluated(0.8))
    gate = house.ledger.versions[1].gate
    (house.root / "store" / "objects" / gate[:2] / gate).unlink()
    audits = [examine(house.store, f"{NAME}:{number}", house.keys) for number in (1, 2)]
    with pytest.raises(HardcaseError, match=f"{NAME}:1.*: cannot be compared: .*{gate}"):
        compare_versions(house.store, *audits)
