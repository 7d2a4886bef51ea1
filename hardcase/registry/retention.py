"""Which objects nobody needs: reachable from no version of a model and no kept run.

A run is kept as long as its record `runs/<run-id>.json` is in the store. What was written lately may belong to a run
that has not come to its end and is never listed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hardcase.provenance.attestations import open_link
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import FOLDER, SNAPSHOT, Resource, listed, read_provenance
from hardcase.registry.ledger import Version, models, read_ledger
from hardcase.registry.runs import RUNS, run_record
from hardcase.store.store import Store, object_name


@dataclass(frozen=True)
class Loose:
    """An object that nobody needs.

    Attributes:
        name: in the store.
        size: bytes.
        written: UTC.
    """

    name: str
    size: int
    written: datetime


def loose_objects(store: Store, keys: Keyring, older_than: timedelta) -> list[Loose]:
    """Those that no version and no kept run can reach, the largest first.

    Args:
        store: opened without a cache.
        keys: who is trusted; a ledger that cannot be read keeps everything from being judged.
        older_than: what is younger is not listed.

    Raises:
        HardcaseError: a ledger, a statement, a run or a listing is not as it was.
    """
    since = datetime.now(UTC) - older_than
    needed = set(_reachable(store, keys))
    found = [
        Loose(object_name(digest), size, written)
        for digest, size, written in store.list_objects()
        if digest not in needed and written < since
    ]
    return sorted(found, key=lambda loose: (-loose.size, loose.name))


def _reachable(store: Store, keys: Keyring) -> Iterator[str]:
    for name in models(store):
        for version in read_ledger(store, name, keys).versions.values():
            yield from _of_version(store, keys, version)
    for name in store.list_names(RUNS):
        run = run_record(store, name)
        if run.get("report"):
            yield run["report"]
        if attestation := run.get("attestation"):
            yield attestation
            yield from open_link(store.get_object(attestation), keys, object_name(attestation)).products.values()
        if snapshot := run["snapshot"]:
            yield from _below(store, [Resource("snapshot", snapshot, SNAPSHOT)])


def _of_version(store: Store, keys: Keyring, version: Version) -> Iterator[str]:
    what = object_name(version.statement)
    provenance = read_provenance(keys.opened(store.get_object(version.statement), what), what)
    yield version.statement
    yield from _below(store, [*provenance.resources, Resource("dossier", version.dossier, FOLDER)])


def _below(store: Store, resources: Iterable[Resource]) -> Iterator[str]:
    for resource in resources:
        yield resource.digest
        if resource.kind in (FOLDER, SNAPSHOT):
            yield from listed(store.get_object(resource.digest), resource.kind, object_name(resource.digest)).values()
