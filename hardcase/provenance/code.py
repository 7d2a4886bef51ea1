"""The code that makes a model: its digest, its files in the store, its git commit."""

import os
import subprocess
from pathlib import Path
from typing import Final

from hardcase.store.digest import bytes_digest, canonical_json, path_digest
from hardcase.store.store import Store

PACKAGE: Final = Path(__file__).parents[1]
ROOT: Final = PACKAGE.parent
LOCK: Final = "requirements.lock"


def code_files() -> dict[str, Path]:
    """Return the files of the package by relative path: sources, compiled pipelines, profiles, locked versions."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(files)}


def code_digest() -> str:
    """Return the sha256 of the package's files, which is the digest of a folder that holds them."""
    return bytes_digest(canonical_json({name: path_digest(path) for name, path in code_files().items()}))


def keep_code(store: Store) -> str:
    """Store the package's files and return the digest of their folder."""
    listing = {name: store.put_object(path.read_bytes()) for name, path in code_files().items()}
    return store.put_object(canonical_json(listing))


def git_environment() -> dict[str, str]:
    """Return git's commit and state as environment variables: `HARDCASE_COMMIT`, `HARDCASE_CLEAN` (`yes` or `no`).

    The result is empty in an image, which sets them itself, and outside a checkout.
    """
    if "HARDCASE_COMMIT" in os.environ:
        return {}
    commit, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    if commit is None or changes is None:
        return {}
    return {"HARDCASE_COMMIT": commit.strip(), "HARDCASE_CLEAN": "no" if changes else "yes"}


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():  # a repository further up is not ours
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
