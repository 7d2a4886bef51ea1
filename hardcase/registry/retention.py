"""Retention: which stored objects no registered model and no recorded run references.

A run is kept as long as its record `runs/<run-id>.json` is in the store. Recently written objects may belong to a run
that has not ended, so they are never listed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hardcase.provenance.attestations import fetch_attestation
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import FOLDER, SNAPSHOT, Resource, list_members, read_provenance
from hardcase.registry.ledger import Version, list_models, read_ledger
from hardcase.registry.runs import RUNS, read_run_record
from hardcase.store.store import Store, object_name


@dataclass(frozen=True)
class UnreferencedObject:
    """A stored object that nothing references, with its size in bytes."""

    name: str
    size: int
    written: datetime


def list_unreferenced(store: Store, keys: Keyring, older_than: timedelta) -> list[UnreferencedObject]:
    """List the objects that no version and no recorded run references, the largest first.

    Raises:
        HardcaseError: a ledger, statement, run record or listing cannot be read, so nothing can be judged.
    """
    before = datetime.now(UTC) - older_than
    referenced = set(_referenced(store, keys))
    objects = [
        UnreferencedObject(object_name(digest), size, written)
        for digest, size, written in store.list_objects()
        if digest not in referenced and written < before
    ]
    return sorted(objects, key=lambda entry: (-entry.size, entry.name))


def _referenced(store: Store, keys: Keyring) -> Iterator[str]:
    for name in list_models(store):
        for version in read_ledger(store, name, keys).versions.values():
            yield from _of_version(store, keys, version)
    for name in store.list_names(RUNS):
        run = read_run_record(store, name)
        if run.get("report"):
            yield run["report"]
        if attestation := run.get("attestation"):
            yield attestation
            yield from fetch_attestation(store, keys, attestation).products.values()
        if snapshot := run["snapshot"]:
            yield from _with_members(store, [Resource("snapshot", snapshot, SNAPSHOT)])


def _of_version(store: Store, keys: Keyring, version: Version) -> Iterator[str]:
    name = object_name(version.statement)
    provenance = read_provenance(keys.open_envelope(store.get_object(version.statement), name), name)
    yield version.statement
    yield from _with_members(store, [*provenance.resources, Resource("dossier", version.dossier, FOLDER)])


def _with_members(store: Store, resources: Iterable[Resource]) -> Iterator[str]:
    for resource in resources:
        yield resource.digest
        if resource.kind in (FOLDER, SNAPSHOT):
            name = object_name(resource.digest)
            yield from list_members(store.get_object(resource.digest), resource.kind, name).values()
