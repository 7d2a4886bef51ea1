"""The reference says what the code does: generated pages are current, no variable and no exit code is missing."""

import re
import subprocess
import sys
from pathlib import Path

from hardcase import errors

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference"
READ = re.compile(r"""environ(?:\.get\(|\.setdefault\(|\[)\s*["']([A-Z][A-Z0-9_]+)["']""")
OWN = re.compile(r"\bHARDCASE_[A-Z_]*[A-Z]\b")
CODE = ("hardcase", "components", "pipelines", "dags", "infra", "Makefile", "docs/hooks.py", "docs/reference/cli.md")
# Set for other libraries, or given to the code by a test or an image; no user sets them.
NOT_SETTINGS = {"CUBLAS_WORKSPACE_CONFIG", "DO_NOT_TRACK", "ENGINE", "PATH", "USER", "VERSION"}


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
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {0, 130, *codes}


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
