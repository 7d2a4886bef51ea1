"""The reference says what the code does: generated pages are current, no variable and no exit code is missing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hardcase import errors

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference"
READ = re.compile(r"""environ(?:\.get\(|\.setdefault\(|\[)\s*["']([A-Z][A-Z0-9_]+)["']""")
OWN = re.compile(r"\bHARDCASE_[A-Z_]*[A-Z]\b")
CODE = ("hardcase", "components", "pipelines", "dags", "infra", "Makefile", "docs/hooks.py", "docs/reference/cli.md")
# Set for other libraries, or given to the code by a test or an image; no user sets them.
NOT_SETTINGS = {"CUBLAS_WORKSPACE_CONFIG", "DO_NOT_TRACK", "ENGINE", "HOME", "PATH", "USER", "VERSION"}


def source_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *CODE], cwd=ROOT, check=True, capture_output=True, text=True)
    kept = [ROOT / name for name in listed.stdout.split() if not re.search(r"(^|/)tests?(/|_)|\.lock$|\.md$", name)]
    assert len(kept) > 100
    return [*kept, REFERENCE / "cli.md"]


def test_every_environment_variable_has_a_row_and_every_row_a_variable() -> None:
    page = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (REFERENCE / "environment.md").read_text(encoding="utf-8")))
    texts = [path.read_text(encoding="utf-8") for path in source_files() if path.is_file()]
    own = {name for text in texts for name in OWN.findall(text)} - {"HARDCASE_ALERTS", "HARDCASE_MLFLOW"}
    read = {name for text in texts for name in READ.findall(text)} - NOT_SETTINGS
    foreign = {name for name in read if re.match("MLFLOW_(DISABLE|HTTP|SERVER)|NUMBA|XDG|HF_HUB", name)}
    assert sorted((own | read) - foreign - page) == [], "read by the code, not in environment.md"
    assert sorted({name for name in page if name.startswith("HARDCASE_")} - own) == [], "in environment.md only"


def test_every_exit_code_is_described() -> None:
    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {0, 130, 143, *codes}


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[a](how-to/nothing.md)", "how-to/nothing.md"),
        ("[a](how-to/audit.md#nothing)", "#nothing"),
        ("[a](../nothing.md)", "../nothing.md"),
        ('<img src="https://example.com/a.png">', "without a network"),
    ],
)
def test_site_is_not_built_with_a_dead_link_or_a_foreign_image(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text(f"# Site\n\n{line}\n", encoding="utf-8")
    (tmp_path / "docs" / "how-to" / "audit.md").write_text("# Audit\n", encoding="utf-8")
    shutil.copy(ROOT / "docs" / "hooks.py", tmp_path / "docs")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr, done.stderr
