"""The version stands in pyproject.toml; everything else that states it agrees."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import hardcase
from hardcase.runtime.running import LIGHT_IMAGE, TRAIN_IMAGE

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = re.compile(r"hardcase/python-(?:light|train):([0-9][\w.]*)")


def test_package_and_images_have_the_version_of_pyproject() -> None:
    assert hardcase.__version__ == VERSION
    assert (f"hardcase/python-light:{VERSION}", f"hardcase/python-train:{VERSION}") == (LIGHT_IMAGE, TRAIN_IMAGE)
    assert tomllib.loads((ROOT / "dags" / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_file_that_names_an_image_names_the_one_of_this_version() -> None:
    stale, count = [], 0
    for pattern in ("hardcase/compiled/*.yaml", "infra/**/*.yaml", "docs/**/*.md", "tests/**/*.py", "README.md"):
        for path in ROOT.glob(pattern):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                for version in IMAGE.findall(line):
                    count += 1
                    if version != VERSION:
                        stale.append(f"{path.relative_to(ROOT)}:{number}: {version}")
    assert count > 10
    assert stale == []


def test_version_is_printed_also_without_the_console_script(tmp_path: Path) -> None:
    for call in ([sys.executable, "-m", "hardcase"], [str(Path(sys.executable).with_name("hardcase"))]):
        result = subprocess.run([*call, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (result.stdout, result.stderr, result.returncode) == (f"{VERSION}\n", "", 0)


def test_checkout_that_is_not_installed_knows_its_version() -> None:
    code = "import hardcase; print(hardcase.__version__)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    python = Path(sys.executable).resolve()  # of the system: without the packages of the environment
    command = [str(python), "-S", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == (f"{VERSION}\n", "")
