"""What a source holds, told without reading it."""

import hashlib
import os
from pathlib import Path

from hardcase.data.remote import digest_remote_source
from hardcase.store.store import parse_local_path


def source_digest(source: str, apart: Path | None = None) -> str:
    """What a source holds: on disk by path, size and time of change, on S3 by key, size and ETag; else empty.

    Args:
        source: a URI, a folder, or a manifest file (its folder then counts).
        apart: a folder that is left out where it lies inside the source.
    """
    if source.startswith("s3://"):
        return digest_remote_source(source)
    if source.startswith("snapshot:"):  # its id says it
        return ""
    if "://" in source and not source.startswith("file://"):
        return ""
    path = parse_local_path(source)
    if not path.exists():
        return ""
    folder = path if path.is_dir() else path.parent
    listing = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(parent, name) != apart)
        for name in sorted(files):
            file = Path(parent, name)
            facts = file.lstat()
            listing.update(f"{file.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return listing.hexdigest()
