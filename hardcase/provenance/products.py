"""Products of steps in the object store: store, fetch and verify them by sha256 and media type."""

import shutil
from pathlib import Path

from hardcase.data.weights import refuse_pickles
from hardcase.provenance.statement import FILE, FOLDER, SNAPSHOT, list_members
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, write_atomically


def keep_product(store: Store, path: Path) -> tuple[str, str]:
    """Store a file or folder; return its sha256 and media type. A file named `snapshot` is a snapshot's manifest."""
    if path.is_dir():
        return store.put_folder(path), FOLDER
    return store.put_object(path.read_bytes()), SNAPSHOT if path.name == "snapshot" else FILE


def fetch_product(store: Store, digest: str, kind: str, path: Path) -> Path:
    """Write a stored file or folder to `path`, unless it is there already."""
    if path.exists() and path_digest(path) == digest:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != FOLDER:
        write_atomically(path, store.get_object(digest))
        return path
    shutil.rmtree(path, ignore_errors=True)
    fetch_folder(store, digest, path)
    return path


def fetch_folder(store: Store, digest: str, dest: Path) -> None:
    """Write a stored folder, which may not hold pickles, as `dest`: all of it or nothing."""
    draft = dest.with_name(f".{dest.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        store.get_folder(digest, draft)
        refuse_pickles(draft)
        draft.replace(dest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_product(store: Store, digest: str, kind: str) -> None:
    """Verify that a product and all its members are in the store."""
    if kind == FILE:
        store.check_object(digest)
        return
    for part in list_members(store, digest, kind).values():
        store.check_object(part)
