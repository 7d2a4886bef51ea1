"""What a model version was made of: one in-toto statement with a SLSA v1 provenance predicate.

Everything in it is named by digest and kept in the store, so that whoever has the store can find it all and rehash it
(https://slsa.dev/spec/v1.1/provenance).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hardcase.errors import HardcaseError
from hardcase.provenance.signing import STATEMENT, DistrustError
from hardcase.store.store import object_name

SLSA: Final = "https://slsa.dev/provenance/v1"
BUILD: Final = "urn:hardcase:retraining:v1"
BUILDER: Final = "urn:hardcase:pipeline:v1"
# How an object is to be read.
FILE: Final = "application/octet-stream"
FOLDER: Final = "application/vnd.hardcase.folder+json"
SNAPSHOT: Final = "application/vnd.hardcase.snapshot+json"
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
SUBJECT: Final = "model"


@dataclass(frozen=True)
class Resource:
    """Something that a version was made of, or that was made on the way.

    Attributes:
        name: what it is to the version.
        digest: sha256 of the object in the store; empty for what is not kept there.
        kind: media type.
        notes: what else to say of it.
    """

    name: str
    digest: str
    kind: str = FILE
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """A version's statement, taken apart.

    Attributes:
        subject: digest of the model's folder.
        parameters: `config` (by step), `source`, `seed`.
        internal: `fingerprint`, `champion` (judged against), `reference`.
        dependencies: what it was made of, by name.
        byproducts: what was made on the way, by name.
        run: that registered it.
        parents: earlier runs whose steps it took over.
    """

    subject: str
    parameters: Mapping[str, Any]
    internal: Mapping[str, Any]
    dependencies: Mapping[str, Resource]
    byproducts: Mapping[str, Resource]
    run: str
    parents: tuple[str, ...] = ()

    def statement(self, files: Mapping[str, str]) -> dict[str, Any]:
        """As an in-toto statement.

        Args:
            files: sha256 of each of the model's files, by name.
        """
        subjects = {SUBJECT: self.subject, **{f"{SUBJECT}/{name}": digest for name, digest in files.items()}}
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
            "predicateType": SLSA,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD,
                    "externalParameters": dict(self.parameters),
                    "internalParameters": dict(self.internal),
                    "resolvedDependencies": [_descriptor(each) for each in self.dependencies.values()],
                },
                "runDetails": {
                    "builder": {"id": BUILDER},
                    "metadata": {"invocationId": self.run},
                    "byproducts": [
                        *(_descriptor(each) for each in self.byproducts.values()),
                        *({"name": "parent run", "annotations": {"run": run}} for run in self.parents),
                    ],
                },
            },
        }

    @property
    def resources(self) -> list[Resource]:
        """Everything that is kept in the store."""
        model = Resource(SUBJECT, self.subject, FOLDER)
        everything = [model, *self.dependencies.values(), *self.byproducts.values()]
        return [resource for resource in everything if resource.digest]


def named(resources: Iterable[Resource]) -> dict[str, Resource]:
    """By name."""
    return {resource.name: resource for resource in resources}


def read_provenance(statement: Mapping[str, Any], what: str) -> Provenance:
    """Take a version's statement apart.

    Raises:
        DistrustError: it is another kind of statement.
    """
    try:
        assert statement["predicateType"] == SLSA
        definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
        assert definition["buildType"] == BUILD
        assert statement["subject"][0]["name"] == SUBJECT
        parents = [each for each in details["byproducts"] if each["name"] == "parent run"]
        byproducts = [each for each in details["byproducts"] if each["name"] != "parent run"]
        return Provenance(
            subject=statement["subject"][0]["digest"]["sha256"],
            parameters=definition["externalParameters"],
            internal=definition["internalParameters"],
            dependencies=named(_resource(each) for each in definition["resolvedDependencies"]),
            byproducts=named(_resource(each) for each in byproducts),
            run=details["metadata"]["invocationId"],
            parents=tuple(each["annotations"]["run"] for each in parents),
        )
    except (KeyError, IndexError, TypeError, AssertionError) as error:
        raise DistrustError(f"{what}: signed, but not the provenance of a model; bring back the original") from error


def listed(content: bytes, kind: str, place: str) -> dict[str, str]:
    """The sha256 of what a folder or a snapshot lists, by name.

    Raises:
        HardcaseError: it is no such listing.
    """
    try:
        listing = json.loads(content)
        if kind == SNAPSHOT:
            shards = enumerate(listing["shards"])
            listing = {f"shard {number} ({shard['split']})": shard["sha256"] for number, shard in shards}
        for digest in listing.values():
            object_name(digest)  # refuses what is no sha256
        return dict(listing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HardcaseError(f"{place}: not a listing; bring back the original") from error


def _descriptor(resource: Resource) -> dict[str, Any]:
    found: dict[str, Any] = {"name": resource.name}
    if resource.digest:
        found |= {"digest": {"sha256": resource.digest}, "mediaType": resource.kind}
    if resource.notes.get("commit"):
        found["digest"] = {"gitCommit": resource.notes["commit"]}
    return found | ({"annotations": dict(resource.notes)} if resource.notes else {})


def _resource(descriptor: Mapping[str, Any]) -> Resource:
    return Resource(
        descriptor["name"],
        descriptor.get("digest", {}).get("sha256", ""),
        descriptor.get("mediaType", FILE),
        descriptor.get("annotations", {}),
    )
