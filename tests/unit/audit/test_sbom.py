"""The bill of materials is CycloneDX, names what is installed with its licences, and comes out the same twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from hardcase.provenance.sbom import packages, sbom


def content(bom: bytes) -> dict[str, Any]:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom.decode()) is None
    return json.loads(bom)


def test_names_what_is_installed_and_is_valid() -> None:
    named = packages(sbom())
    assert len(named) > 150
    assert named["trl"].count(".") == 2
    bom = content(sbom())
    torch = next(each for each in bom["components"] if each["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@")
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert any(ref.startswith("numpy@") for ref in needs[next(ref for ref in needs if ref.startswith("pandas@"))])
    assert bom["metadata"]["component"]["name"] == "hardcase"
    assert "timestamp" not in bom["metadata"]


def test_another_process_comes_to_the_same_bytes() -> None:
    told = "import sys; from hardcase.provenance.sbom import sbom; sys.stdout.buffer.write(sbom())"
    runs = [
        subprocess.run([sys.executable, "-c", told], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout
    assert content(runs[0].stdout)["serialNumber"].startswith("urn:uuid:")


def installed(place: Path, name: str, *lines: str) -> None:
    folder = place / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n")


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT", "License: other"], {"license": {"id": "MIT", "acknowledgement": "declared"}}),
        (["License-Expression: MIT OR Apache-2.0"], {"expression": "MIT OR Apache-2.0", "acknowledgement": "declared"}),
        (["License: Our own"], {"license": {"name": "Our own", "acknowledgement": "declared"}}),
        (
            [f"License: {'text ' * 99}", "Classifier: License :: OSI Approved :: BSD License"],
            {"license": {"name": "BSD License", "acknowledgement": "declared"}},
        ),
        (["License: UNKNOWN"], None),
    ],
)
def test_licence_is_what_the_package_declares(
    lines: list[str], licence: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "Odd.Name", "Name: Odd.Name", "Version: 1.0", *lines)
    monkeypatch.syspath_prepend(tmp_path)
    odd = next(each for each in content(sbom.__wrapped__())["components"] if each["name"] == "odd-name")
    assert odd["purl"] == "pkg:pypi/odd-name@1.0"
    assert odd.get("licenses") == ([licence] if licence else None)


def test_packages_with_broken_metadata_do_not_stop_a_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "nameless")
    installed(tmp_path, "old", "Name: old", "Version: 1.0", "Requires-Dist: trl (>1.*.dev)", "Requires-Dist: numpy")
    monkeypatch.syspath_prepend(tmp_path)
    bom = content(sbom.__wrapped__())
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert [each.partition("@")[0] for each in needs["old@1.0"]] == ["numpy"]


def test_of_two_installed_the_one_that_is_imported_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "trl", "Name: TRL", "Version: 0.0.1")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages(sbom.__wrapped__())["trl"] == "0.0.1"
