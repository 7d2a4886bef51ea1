"""The code that makes a model: its digest, its files in the store, its place in git."""

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
    """sha256 over all of them, the digest of a folder that holds them."""
    return bytes_digest(canonical_json({name: path_digest(path) for name, path in code_files().items()}))


def keep_code(store: Store) -> str:
    """Keep them; the digest of their folder."""
    listing = {name: store.put_object(path.read_bytes()) for name, path in code_files().items()}
    return store.put_object(canonical_json(listing))


def git_environment() -> dict[str, str]:
    """The commit, and whether the tree differs from it, as the environment of steps; what an image says of itself.

    `HARDCASE_COMMIT`, `HARDCASE_CLEAN` (`yes` or `no`); nothing where neither git nor an image tells.
    """
    if "HARDCASE_COMMIT" in os.environ:
        return {}
    commit, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    if commit is None or changes is None:
        return {}
    return {"HARDCASE_COMMIT": commit.strip(), "HARDCASE_CLEAN": "no" if changes else "yes"}


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():  # a repository further up is another one
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
