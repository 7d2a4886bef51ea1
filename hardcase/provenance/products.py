"""Products of steps in the object store: store, fetch and verify them by sha256 and media type."""

import shutil
from pathlib import Path

from hardcase.data.weights import refuse_pickles
from hardcase.provenance.statement import FILE, FOLDER, SNAPSHOT, list_members
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, object_name, write_atomically


def keep_product(store: Store, path: Path) -> tuple[str, str]:
    """Store a file or folder.

    Returns:
        Its sha256 and its media type; a file named `snapshot` is a snapshot's manifest.

    Raises:
        HardcaseError: the store cannot take it.
    """
    if path.is_dir():
        return store.put_folder(path), FOLDER
    return store.put_object(path.read_bytes()), SNAPSHOT if path.name == "snapshot" else FILE


def fetch_product(store: Store, digest: str, kind: str, path: Path) -> Path:
    """Write a stored file or folder to `path`, unless it is there already.

    Raises:
        HardcaseError: the product is missing or altered, or a folder that holds pickles.
    """
    if path.exists() and path_digest(path) == digest:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != FOLDER:
        write_atomically(path, store.get_object(digest))
        return path
    draft = path.with_name(f".{path.name}.draft")
    for stale in (draft, path):
        shutil.rmtree(stale, ignore_errors=True)
    store.get_folder(digest, draft)
    refuse_pickles(draft)
    draft.replace(path)
    return path


def check_product(store: Store, digest: str, kind: str) -> None:
    """Verify that a product and all its members are in the store.

    Raises:
        HardcaseError: a part of it is missing or altered.
    """
    if kind == FILE:
        store.check_object(digest)
        return
    for part in list_members(store.get_object(digest), kind, object_name(digest)).values():
        store.check_object(part)
