"""Attestations: what a step read and wrote, signed by the process that did it. Together they are a chain without gaps.

The form is in-toto's link predicate v0.3. Materials and products go by name; what joins them is their sha256. A
material also names the attestation of the step that made it, so that the whole chain is found from its last step.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring
from hardcase.provenance.statement import FILE
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store, object_name

LINK: Final = "https://in-toto.io/attestation/link/v0.3"


@dataclass(frozen=True)
class Link:
    """One step of one run.

    Attributes:
        step: its name.
        materials: sha256 of what it read, by name.
        products: sha256 of what it wrote, by name.
        parameters: whatever else makes this work this work: configuration, seed, code.
        circumstances: under which it was done: run, git commit, whether the tree was clean, container image.
        kinds: media types of materials and products, by name; a file where none is given.
        made_by: sha256 of the attestation that made a material, by the material's name.
    """

    step: str
    materials: Mapping[str, str]
    products: Mapping[str, str]
    parameters: Mapping[str, Any]
    circumstances: Mapping[str, Any]
    kinds: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    def signed(self, keys: Keyring) -> bytes:
        """In an envelope."""
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
                    "environment": dict(self.circumstances),
                },
            }
        )

    def _descriptors(self, digests: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "digest": {"sha256": digest}}
            | ({"mediaType": self.kinds[name]} if self.kind(name) != FILE else {})
            | ({"annotations": {"attestation": self.made_by[name]}} if name in self.made_by else {})
            for name, digest in digests.items()
        ]

    def kind(self, name: str) -> str:
        """Return the media type of a material or product."""
        return self.kinds.get(name, FILE)

    @property
    def content(self) -> str:
        """Digest of what was read and written: equal for equal work, whoever did it and when."""
        return bytes_digest(canonical_json({"materials": dict(self.materials), "products": dict(self.products)}))

    @property
    def section(self) -> str:
        """Of the configuration, that it ran with."""
        return str(self.parameters.get("section", self.step))

    @property
    def run(self) -> str:
        """In which run it was done."""
        return str(self.circumstances.get("run", ""))


def open_link(envelope: bytes, keys: Keyring, what: str) -> Link:
    """The link in a signed envelope.

    Raises:
        DistrustError: it is none, or nobody trusted signed it.
    """
    statement = keys.opened(envelope, what)
    try:
        assert statement["predicateType"] == LINK
        predicate = statement["predicate"]
        named = [*predicate["materials"], *statement["subject"]]
        return Link(
            step=predicate["name"],
            materials=_digests(predicate["materials"]),
            products=_digests(statement["subject"]),
            parameters=predicate["byproducts"],
            circumstances=predicate["environment"],
            kinds={each["name"]: each["mediaType"] for each in named if "mediaType" in each},
            made_by={each["name"]: each["annotations"]["attestation"] for each in named if "annotations" in each},
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise DistrustError(f"{what}: signed, but not a step's record; bring back the original") from error


def follow(store: Store, keys: Keyring, attestations: Iterable[str]) -> dict[str, Link]:
    """Return these attestations and all that they rest on, by sha256, each after those it names.

    Args:
        store: where they lie.
        keys: who is trusted.
        attestations: sha256 of envelopes.

    Raises:
        HardcaseError: one of them is missing, altered, or signed by nobody trusted.
    """
    found, waiting = dict[str, Link](), deque(attestations)
    while waiting:
        digest = waiting.popleft()
        found.pop(digest, None)  # of two ways to it the longer one decides its place
        found[digest] = open_link(store.get_object(digest), keys, object_name(digest))
        waiting.extend(dict.fromkeys(found[digest].made_by.values()))
    return dict(reversed(found.items()))


def gaps(links: Sequence[Link], sources: Iterable[str] = ()) -> list[str]:
    """What keeps these links from being one closed chain, as sentences.

    Args:
        links: one a step.
        sources: sha256 of what may come from outside the run.
    """
    known = {digest for link in links for digest in link.products.values()} | set(sources)
    found = [
        f"{link.step} read {name} {digest[:12]}, which no step of the chain wrote"
        for link in links
        for name, digest in link.materials.items()
        if digest not in known
    ]
    for name in {link.section for link in links}:
        values = {canonical_json(link.parameters.get("config")) for link in links if link.section == name}
        if len(values) > 1:
            found.append(f"its steps do not share one configuration of {name}")
    for what in ("code", "seed"):
        values = {link.parameters[what] for link in links if what in link.parameters}
        if len(values) > 1:
            found.append(f"its steps do not share one {what}: {', '.join(sorted(str(value)[:12] for value in values))}")
    return found


def _digests(descriptors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["digest"]["sha256"] for each in descriptors}
