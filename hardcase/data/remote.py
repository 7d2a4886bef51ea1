"""A source that lies on S3: listed, and fetched into a folder to be read as any other."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError

from hardcase.errors import InputError
from hardcase.progress import track
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_objects, write_atomically

AT_ONCE: Final = 16
MANIFEST: Final = (".jsonl", ".parquet")


def fetch_source(uri: str, folder: Path) -> Path:
    """Write what lies under `uri` into `folder`; what lies there already, whole, is not fetched again.

    Args:
        uri: `s3://bucket/prefix`, or a manifest's own key below it.
        folder: for the files.

    Returns:
        The folder, or the manifest in it.

    Raises:
        InputError: nothing lies there, it cannot be read, or a key cannot be a file's name.
    """
    prefix, manifest = _split(uri)
    _, objects = open_objects(prefix)
    entries = _entries(prefix)
    taken = {str(parent) for entry in entries for parent in PurePosixPath(entry["path"]).parents}

    def fetch(entry: dict[str, Any]) -> None:
        path = folder / entry["path"]
        if not path.resolve().is_relative_to(folder.resolve()) or entry["path"] in taken:
            raise InputError(f"source {uri}: the key {entry['path']!r} cannot be a file's name; rename it")
        if not (path.is_file() and path.stat().st_size == entry["size"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, bytes(obstore.get(objects, entry["path"]).bytes()))

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in track(pool.map(fetch, entries), "fetching the source", len(entries)):
                pass
    except (BaseError, OSError) as error:
        raise InputError(f"source {uri}: cannot be fetched: {str(error)[:200]}; check address and rights") from error
    return folder / manifest if manifest else folder


def digest_remote_source(uri: str) -> str:
    """Of what lies under `uri`: every key, size and ETag."""
    listed = {entry["path"]: [entry["size"], entry["e_tag"]] for entry in _entries(_split(uri)[0])}
    return bytes_digest(canonical_json(listed))


def _split(uri: str) -> tuple[str, str]:
    above, _, name = uri.rstrip("/").rpartition("/")
    return (above, name) if name.lower().endswith(MANIFEST) else (uri, "")


def _entries(uri: str) -> list[dict[str, Any]]:
    _, objects = open_objects(uri)
    try:
        found = [dict(entry) for batch in obstore.list(objects) for entry in batch]
    except (BaseError, OSError) as error:
        raise InputError(f"source {uri}: cannot be listed: {str(error)[:200]}; check address and rights") from error
    if not found:
        raise InputError(f"source {uri}: nothing lies there; check the address")
    return found
