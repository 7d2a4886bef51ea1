"""Digest files and folders, independent of their location."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Encode a JSON value in its one canonical form: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def bytes_digest(data: bytes) -> str:
    """Return the sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def path_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, or of a folder's canonical list of relative paths and file digests."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return bytes_digest(canonical_json({p.relative_to(path).as_posix(): path_digest(p) for p in files}))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
