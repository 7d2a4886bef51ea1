"""A wheel, installed in an empty environment, retrains and audits from another folder."""

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hardcase.provenance.code import code_digest, code_files
from tests.support.machine import NO_FLOOR

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SMALL = ("sft.steps=4", "sft.warm_up.steps=2", "sft.reading.steps=2", "grpo.steps=2", "mine.k=2")


def call(*command: str | Path, cwd: Path, home: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HARDCASE_", "PYTHONPATH"))}
    environment |= {"HARDCASE_HOME": str(home), "HARDCASE_CACHE": f"{home}-cache"} if home else {}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the committed and changed files, built away from the checkout, where `build/` would stay."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("hardcase", "components", "pipelines", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    options = ("--wheel", "--offline", "--no-build-isolation", "--python", sys.executable)
    call(UV, "build", *options, "--out-dir", target, cwd=source)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def hardcase(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a fresh environment with the wheel and the dependencies of this environment, not its checkout."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    call(UV, "venv", "--offline", "--python", sys.executable, environment, cwd=ROOT)
    python = environment / "bin" / "python"
    call(UV, "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=ROOT)
    packages = next(environment.glob("lib/python*/site-packages"))
    # A path in a .pth file adds no .pth files of that path, so the checkout's own installation stays out of sight.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return environment / "bin" / "hardcase"


def test_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hardcase/{name}" for name in code_files()} <= names
    assert {name.split("/")[0] for name in names} == {
        "hardcase",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    for name in (
        "py.typed",
        "requirements.lock",
        "profiles/smoke.yaml",
        "compiled/retraining.yaml",
        "compiled/evaluation.yaml",
        "audit/page.html.j2",
    ):
        assert f"hardcase/{name}" in names


def test_wheel_in_an_empty_environment_retrains_and_audits_in_another_folder(hardcase: Path, tmp_path: Path) -> None:
    python, home = hardcase.with_name("python"), tmp_path / "home"
    code = "import hardcase; from hardcase.provenance.code import code_digest; print(hardcase.__file__, code_digest())"
    file, digest = call(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(hardcase.parents[1])
    assert digest == code_digest()
    settings = [*NO_FLOOR, *(part for setting in SMALL for part in ("--set", setting))]
    record = json.loads(call(hardcase, "run", "--profile", "smoke", "--json", *settings, cwd=tmp_path, home=home))
    assert (record["status"], record["error"]) == ("succeeded", None)
    audit = json.loads(call(hardcase, "audit", "image-screener", "--json", cwd=tmp_path, home=home))
    assert (audit["clean"], audit["digest"]) == (True, record["model"]["digest"])
