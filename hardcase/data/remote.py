"""List a source on S3, and fetch it into a folder to be read like a local one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError

from hardcase.errors import InputError
from hardcase.progress import track
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_objects, write_atomically

CONCURRENCY: Final = 16
MANIFEST: Final = (".jsonl", ".parquet")


def fetch_source(uri: str, folder: Path) -> Path:
    """Fetch the objects under `uri` into `folder`, and return it, or the manifest in it that `uri` names.

    Files that are already complete are skipped. A key that cannot be a file's name is an `InputError`.
    """
    prefix, manifest = _split_manifest(uri)
    _, objects = open_objects(prefix)
    entries = _list_entries(prefix)
    folders = {str(parent) for entry in entries for parent in PurePosixPath(entry["path"]).parents}

    def fetch(entry: dict[str, Any]) -> None:
        path = folder / entry["path"]
        if not path.resolve().is_relative_to(folder.resolve()) or entry["path"] in folders:
            raise InputError(f"source {uri}: the key {entry['path']!r} cannot be a file's name; rename it")
        if not (path.is_file() and path.stat().st_size == entry["size"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, bytes(obstore.get(objects, entry["path"]).bytes()))

    try:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for _ in track(pool.map(fetch, entries), "fetching the source", len(entries)):
                pass
    except (BaseError, OSError) as error:
        raise InputError(
            f"source {uri}: cannot be fetched: {str(error)[:200]}; check the address and permissions"
        ) from error
    return folder / manifest if manifest else folder


def digest_remote_source(uri: str) -> str:
    """Return the sha256 over key, size and ETag of every object under `uri`."""
    listing = {entry["path"]: [entry["size"], entry["e_tag"]] for entry in _list_entries(_split_manifest(uri)[0])}
    return bytes_digest(canonical_json(listing))


def _split_manifest(uri: str) -> tuple[str, str]:
    prefix, _, name = uri.rstrip("/").rpartition("/")
    return (prefix, name) if name.lower().endswith(MANIFEST) else (uri, "")


def _list_entries(uri: str) -> list[dict[str, Any]]:
    _, objects = open_objects(uri)
    try:
        entries = [dict(entry) for batch in obstore.list(objects) for entry in batch]
    except (BaseError, OSError) as error:
        raise InputError(
            f"source {uri}: cannot be listed: {str(error)[:200]}; check the address and permissions"
        ) from error
    if not entries:
        raise InputError(f"source {uri}: no objects there; check the address")
    return entries
