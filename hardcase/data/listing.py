"""Digest what a source holds: the content of its manifest, and a listing of its other files."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from hardcase.data.files import split_manifest
from hardcase.data.source import MANIFESTS, split_sources
from hardcase.errors import InputError
from hardcase.store.control import CLIENT_ERRORS, open_bucket
from hardcase.store.digest import bytes_digest, canonical_json, path_digest
from hardcase.store.location import parse_local_path
from hardcase.store.s3_errors import describe_error


def source_digest(source: str, excluded: Path | None = None) -> str:
    """Return the digest of a listing of a URI, a folder, or a manifest file, whose folder then counts.

    It is the sha256 over path, size and modification time of local files but those in `excluded`, or over key, size and
    ETag on S3. A local manifest counts by its content, because it may be a link to another file. The digest is empty
    for a procedural source or a stored snapshot, whose URI identifies the content. Several sources have one digest.
    """
    if len(sources := split_sources(source)) > 1:
        digests = [source_digest(each, excluded) for each in sources]
        return bytes_digest(canonical_json(digests)) if any(digests) else ""
    if source.startswith("s3://"):
        parts = _list_objects(split_manifest(source)[0])
    elif source.startswith("snapshot:") or ("://" in source and not source.startswith("file://")):
        return ""
    else:
        path = parse_local_path(source)
        if not path.exists():
            return ""
        parts = _list_files(path if path.is_dir() else path.parent, path, excluded)
    listing = hashlib.sha256()
    for part in parts:
        listing.update(part)
    return listing.hexdigest()


def _list_files(folder: Path, named: Path, excluded: Path | None) -> Iterator[bytes]:
    manifests = {named, *(folder / name for name in MANIFESTS)}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(parent, name) != excluded)
        for name in sorted(files):
            file = Path(parent, name)
            if file in manifests and file.is_file():
                content = path_digest(file)
            else:
                stat = file.lstat()
                content = f"{stat.st_size}\0{stat.st_mtime_ns}"
            yield f"{file.relative_to(folder)}\0{content}\n".encode("utf-8", "surrogateescape")


def _list_objects(uri: str) -> Iterator[bytes]:
    """Yield the parts of the canonical JSON of size and ETag by key, in which order S3 lists."""
    # boto3 lists every key there is; obstore refuses to list a prefix that holds a key such as `a//b`.
    bucket, prefix, client = open_bucket(uri)
    before = b"{"
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if entry["Key"].endswith("/"):  # the S3 console's mark of a folder
                    continue
                listed = canonical_json({entry["Key"].removeprefix(prefix): [entry["Size"], entry["ETag"]]})
                yield before + listed[1:-1]
                before = b","
    except CLIENT_ERRORS as error:
        remedy = "check the address and permissions"
        raise InputError(f"source {uri}: cannot be listed: {describe_error(error, remedy)}") from error
    if before == b"{":
        raise InputError(f"source {uri}: no objects there; check the address")
    yield b"}"
