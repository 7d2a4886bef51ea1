"""Provenance of a model version: one in-toto statement with a SLSA v1 predicate (https://slsa.dev/spec/v1.1/provenance).

The statement names everything by digest, and the store holds it, so an auditor with the store can rehash all of it. The
format version is the one in the build type.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hardcase.errors import HardcaseError
from hardcase.formats import SNAPSHOT_FORMAT, check_format, check_type
from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring
from hardcase.store.store import Store, object_name

SLSA: Final = "https://slsa.dev/provenance/v1"
BUILD: Final = "urn:hardcase:retraining:"
FORMAT: Final = 1
BUILDER: Final = "urn:hardcase:pipeline:v1"
# Media types.
FILE: Final = "application/octet-stream"
FOLDER: Final = "application/vnd.hardcase.folder+json"
SNAPSHOT: Final = "application/vnd.hardcase.snapshot+json"
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
SUBJECT: Final = "model"


@dataclass(frozen=True)
class Resource:
    """A dependency or byproduct of a version, named for its role, such as `snapshot`."""

    name: str
    digest: str  # empty for what the store does not hold
    kind: str = FILE
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Content of a version's statement."""

    subject: str  # digest of the model's folder
    parameters: Mapping[str, Any]  # `config` by step, `source`, `seed`
    internal: Mapping[str, Any]  # `fingerprint`, `reference`: sha256 of the evaluation that drift compared with
    dependencies: Mapping[str, Resource]
    byproducts: Mapping[str, Resource]
    run: str  # the one that registered the version
    parents: tuple[str, ...] = ()  # earlier runs whose steps it reused

    def statement(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Return the in-toto statement, which also names the model's `files` and their sha256."""
        subjects = {SUBJECT: self.subject, **{f"{SUBJECT}/{name}": digest for name, digest in files.items()}}
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
            "predicateType": SLSA,
            "predicate": {
                "buildDefinition": {
                    "buildType": f"{BUILD}v{FORMAT}",
                    "externalParameters": dict(self.parameters),
                    "internalParameters": dict(self.internal),
                    "resolvedDependencies": [_descriptor(resource) for resource in self.dependencies.values()],
                },
                "runDetails": {
                    "builder": {"id": BUILDER},
                    "metadata": {"invocationId": self.run},
                    "byproducts": [
                        *(_descriptor(resource) for resource in self.byproducts.values()),
                        *({"name": "parent run", "annotations": {"run": run}} for run in self.parents),
                    ],
                },
            },
        }

    @property
    def resources(self) -> list[Resource]:
        """Return all resources that the store holds, the model first."""
        model = Resource(SUBJECT, self.subject, FOLDER)
        resources = [model, *self.dependencies.values(), *self.byproducts.values()]
        return [resource for resource in resources if resource.digest]


def index_resources(resources: Iterable[Resource]) -> dict[str, Resource]:
    return {resource.name: resource for resource in resources}


def read_provenance(statement: Mapping[str, Any], what: str) -> Provenance:
    """Return the content of a version's statement; `DistrustError` if it is of another kind."""
    try:
        definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
        check_type(definition["buildType"], BUILD, FORMAT, what)
        if (statement["predicateType"], statement["subject"][0]["name"]) != (SLSA, SUBJECT):
            raise ValueError("another type or subject")
        parents = [entry for entry in details["byproducts"] if entry["name"] == "parent run"]
        byproducts = [entry for entry in details["byproducts"] if entry["name"] != "parent run"]
        return Provenance(
            subject=statement["subject"][0]["digest"]["sha256"],
            parameters=definition["externalParameters"],
            internal=definition["internalParameters"],
            dependencies=index_resources(map(_resource, definition["resolvedDependencies"])),
            byproducts=index_resources(map(_resource, byproducts)),
            run=details["metadata"]["invocationId"],
            parents=tuple(entry["annotations"]["run"] for entry in parents),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DistrustError(f"{what}: signed, but not the provenance of a model; bring back the original") from error


def fetch_provenance(store: Store, keys: Keyring, digest: str) -> Provenance:
    """Return the content of a stored statement, by the sha256 of its envelope."""
    name = object_name(digest)
    return read_provenance(keys.open_envelope(store.get_object(digest), name), name)


def list_members(store: Store, digest: str, kind: str) -> dict[str, str]:
    """Return the sha256 of the members of a folder or snapshot by name, from its listing or manifest in a store."""
    content, name = store.get_object(digest), object_name(digest)
    try:
        listing = json.loads(content)
        if kind == SNAPSHOT:
            check_format(listing.get("schema", 1), SNAPSHOT_FORMAT, name)
            index = {"index": listing["index"]["sha256"]} if "index" in listing else {}  # format 1 has none
            shards = {f"shard {number}": shard["sha256"] for number, shard in enumerate(listing["shards"])}
            listing = index | shards
        for member in listing.values():
            object_name(member)  # raises if it is not a sha256
        return dict(listing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HardcaseError(f"{name}: not a listing; bring back the original") from error


def _descriptor(resource: Resource) -> dict[str, Any]:
    descriptor: dict[str, Any] = {"name": resource.name}
    if resource.digest:
        descriptor |= {"digest": {"sha256": resource.digest}, "mediaType": resource.kind}
    if resource.notes.get("commit"):
        descriptor["digest"] = {"gitCommit": resource.notes["commit"]}
    return descriptor | ({"annotations": dict(resource.notes)} if resource.notes else {})


def _resource(descriptor: Mapping[str, Any]) -> Resource:
    return Resource(
        descriptor["name"],
        descriptor.get("digest", {}).get("sha256", ""),
        descriptor.get("mediaType", FILE),
        descriptor.get("annotations", {}),
    )
