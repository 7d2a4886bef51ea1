"""Attestations: what a step read and wrote, signed by the process that did it. Together they form a closed chain.

The form is in-toto's link predicate v0.3. Materials and products are named; their sha256 joins one step to the next. A
material also names the attestation of the step that wrote it, so the whole chain can be followed from its last step.
The format version stands in the predicate's `environment` and is 1 where it is missing.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hardcase.formats import check_format
from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring
from hardcase.provenance.statement import FILE
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store, object_name

LINK: Final = "https://in-toto.io/attestation/link/v0.3"
FORMAT: Final = 1


@dataclass(frozen=True)
class Attestation:
    """Attestation of one step of one run: sha256 of what it read and wrote, by name, and what it ran with."""

    step: str
    materials: Mapping[str, str]
    products: Mapping[str, str]
    parameters: Mapping[str, Any]  # inputs that are not files: configuration, seed, code
    circumstances: Mapping[str, Any]  # run, git commit, whether the tree was clean, container image
    media_types: Mapping[str, str] = field(default_factory=dict)  # a file where none is given
    attested_by: Mapping[str, str] = field(default_factory=dict)  # attestation that a material comes from

    def sign(self, keys: Keyring) -> bytes:
        return keys.sign(
            {
                "_type": STATEMENT,
                "subject": self._descriptors(self.products),
                "predicateType": LINK,
                "predicate": {
                    "name": self.step,
                    "command": [],
                    "materials": self._descriptors(self.materials),
                    "byproducts": dict(self.parameters),
                    "environment": {"format": FORMAT, **self.circumstances},
                },
            }
        )

    def _descriptors(self, digests: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "digest": {"sha256": digest}}
            | ({"mediaType": self.media_types[name]} if self.media_type(name) != FILE else {})
            | ({"annotations": {"attestation": self.attested_by[name]}} if name in self.attested_by else {})
            for name, digest in digests.items()
        ]

    def media_type(self, name: str) -> str:
        return self.media_types.get(name, FILE)

    @property
    def content(self) -> str:
        """Return the digest of materials and products: equal for equal work, independent of actor and time."""
        return bytes_digest(canonical_json({"materials": dict(self.materials), "products": dict(self.products)}))

    @property
    def section(self) -> str:
        """Return the name of the section of the configuration that the step ran with."""
        return str(self.parameters.get("section", self.step))

    @property
    def run(self) -> str:
        """Return the id of the run."""
        return str(self.circumstances.get("run", ""))


def open_attestation(envelope: bytes, keys: Keyring, what: str) -> Attestation:
    """Return the attestation in a signed envelope; `DistrustError` unless it is one, by a trusted key."""
    statement = keys.open_envelope(envelope, what)
    try:
        if statement["predicateType"] != LINK:
            raise ValueError(f"type {statement['predicateType']!r} is not {LINK}")
        predicate = statement["predicate"]
        environment = dict(predicate["environment"])
        check_format(environment.pop("format", 1), FORMAT, what)
        descriptors = [*predicate["materials"], *statement["subject"]]
        return Attestation(
            step=predicate["name"],
            materials=_digests(predicate["materials"]),
            products=_digests(statement["subject"]),
            parameters=predicate["byproducts"],
            circumstances=environment,
            media_types={entry["name"]: entry["mediaType"] for entry in descriptors if "mediaType" in entry},
            attested_by={
                entry["name"]: entry["annotations"]["attestation"] for entry in descriptors if "annotations" in entry
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DistrustError(f"{what}: signed, but not a step's attestation; bring back the original") from error


def fetch_attestation(store: Store, keys: Keyring, digest: str) -> Attestation:
    """Return a stored attestation, by the sha256 of its envelope."""
    return open_attestation(store.get_object(digest), keys, object_name(digest))


def follow(store: Store, keys: Keyring, attestations: Iterable[str]) -> dict[str, Attestation]:
    """Return these attestations and all that they rest on, by sha256, each after those it names."""
    links, waiting = dict[str, Attestation](), deque(attestations)
    while waiting:
        digest = waiting.popleft()
        links.pop(digest, None)  # of two paths to an attestation, the longer one decides its position
        links[digest] = fetch_attestation(store, keys, digest)
        waiting.extend(dict.fromkeys(links[digest].attested_by.values()))
    return dict(reversed(links.items()))


def find_gaps(links: Sequence[Attestation], sources: Iterable[str] = ()) -> list[str]:
    """Return, as sentences, what keeps attestations from forming one closed chain; `sources` may come from outside."""
    known = {digest for link in links for digest in link.products.values()} | set(sources)
    sentences = [
        f"{link.step} read {name} {digest[:12]}, which no step of the chain wrote"
        for link in links
        for name, digest in link.materials.items()
        if digest not in known
    ]
    for section in {link.section for link in links}:
        values = {canonical_json(link.parameters.get("config")) for link in links if link.section == section}
        if len(values) > 1:
            sentences.append(f"its steps do not share one configuration of {section}")
    for name in ("code", "seed"):
        values = {link.parameters[name] for link in links if name in link.parameters}
        if len(values) > 1:
            several = ", ".join(sorted(str(value)[:12] for value in values))
            sentences.append(f"its steps do not share one {name}: {several}")
    return sentences


def _digests(descriptors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["digest"]["sha256"] for entry in descriptors}
