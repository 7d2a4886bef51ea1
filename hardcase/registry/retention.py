"""Retention: which stored objects no registered model and no recorded run references.

A run is kept as long as its record `runs/<run-id>.json` is in the store. Recently written objects may belong to a run
that has not ended, so they are never listed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hardcase.provenance.attestations import fetch_attestation
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import FOLDER, SNAPSHOT, Resource, fetch_provenance, list_members
from hardcase.registry.ledger import list_models, read_ledger
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
            yield version.statement
            resources = fetch_provenance(store, keys, version.statement).resources
            yield from _with_members(store, [*resources, Resource("dossier", version.dossier, FOLDER)])
    for name in store.list_names(RUNS):
        run = read_run_record(store, name)
        if run.get("report"):
            yield run["report"]
        if attestation := run.get("attestation"):
            yield attestation
            yield from fetch_attestation(store, keys, attestation).products.values()
        if snapshot := run["snapshot"]:
            yield from _with_members(store, [Resource("snapshot", snapshot, SNAPSHOT)])


def _with_members(store: Store, resources: Iterable[Resource]) -> Iterator[str]:
    for resource in resources:
        yield resource.digest
        if resource.kind in (FOLDER, SNAPSHOT):
            yield from list_members(store, resource.digest, resource.kind).values()
