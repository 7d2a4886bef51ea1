"""Links: what a step read and wrote, signed by the process that did it; together they are a chain without gaps.

The form is in-toto's link predicate v0.3. Materials and products go by name; what joins them is their sha256.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hardcase.audit.signing import STATEMENT, DistrustError, Keyring
from hardcase.data.digest import canonical_json

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
    """

    step: str
    materials: Mapping[str, str]
    products: Mapping[str, str]
    parameters: Mapping[str, Any]
    circumstances: Mapping[str, Any]

    def signed(self, keys: Keyring) -> bytes:
        """In an envelope."""
        return keys.sign(
            {
                "_type": STATEMENT,
                "subject": _descriptors(self.products),
                "predicateType": LINK,
                "predicate": {
                    "name": self.step,
                    "command": [],
                    "materials": _descriptors(self.materials),
                    "byproducts": dict(self.parameters),
                    "environment": dict(self.circumstances),
                },
            }
        )

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
        return Link(
            step=predicate["name"],
            materials=_digests(predicate["materials"]),
            products=_digests(statement["subject"]),
            parameters=predicate["byproducts"],
            circumstances=predicate["environment"],
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise DistrustError(f"{what}: signed, but not a step's record; bring back the original") from error


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


def _descriptors(digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()]


def _digests(descriptors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["digest"]["sha256"] for each in descriptors}
