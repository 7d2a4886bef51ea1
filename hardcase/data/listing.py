"""Digest what a source holds, without reading its files."""

import hashlib
import os
from pathlib import Path

from hardcase.data.remote import digest_remote_source
from hardcase.store.store import parse_local_path


def source_digest(source: str, excluded: Path | None = None) -> str:
    """Return the digest of a listing of a URI, a folder, or a manifest file, whose folder then counts.

    It is the sha256 over path, size and modification time of local files but those in `excluded`, or over key, size and
    ETag on S3. It is empty for a procedural source or a stored snapshot, whose URI identifies the content.
    """
    if source.startswith("s3://"):
        return digest_remote_source(source)
    if source.startswith("snapshot:") or ("://" in source and not source.startswith("file://")):
        return ""
    path = parse_local_path(source)
    if not path.exists():
        return ""
    folder = path if path.is_dir() else path.parent
    listing = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(parent, name) != excluded)
        for name in sorted(files):
            file = Path(parent, name)
            stat = file.lstat()
            listing.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return listing.hexdigest()
