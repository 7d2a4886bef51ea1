"""What is installed where a model was made, or in an image, as a CycloneDX 1.6 bill of materials."""

import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageMetadata, distributions
from typing import TYPE_CHECKING, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

LONGEST_NAME: Final = 80  # of a licence; some packages put the whole text where its name belongs
NAMESPACE: Final = uuid.UUID("6f1d3c52-7f0e-5d2b-9a53-0c4f1f0f6a11")


@cache
def sbom() -> bytes:
    """Of the running environment."""
    return bill(found.metadata for found in distributions())  # a property that parses the file each time


def bill(metadata: Iterable[PackageMetadata], root: str = "hardcase", system: Iterable["Component"] = ()) -> bytes:
    """Of what is installed somewhere: the same packages give the same bytes.

    Args:
        metadata: of Python's packages, in the order of the path.
        root: what is made of them; its own metadata may be among them.
        system: what else there is.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseAcknowledgement
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licence = partial(LicenseFactory().make_from_string, license_acknowledgement=LicenseAcknowledgement.DECLARED)
    installed = _installed(metadata)
    own = installed.pop(root, None)
    version = {name: _told(found, "Version") for name, found in installed.items()}
    components = {
        name: Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version[name],
            bom_ref=f"{name}@{version[name]}",
            purl=PackageURL("pypi", name=name, version=version[name]),
            licenses=[licence(text) for text in _licences(found)],
        )
        for name, found in sorted(installed.items())
    }
    bom = Bom(components=[*components.values(), *system])
    made = Component(
        type=ComponentType.APPLICATION,
        name=root,
        version=_told(own, "Version") if own else None,
        bom_ref=root,
    )
    bom.metadata.component = made
    bom.register_dependency(made, [components[name] for name in _needs(own) if name in components] if own else [])
    for name, component in components.items():
        bom.register_dependency(component, [components[n] for n in _needs(installed[name]) if n in components])
    told = json.loads(JsonV1Dot6(bom).output_as_string())
    del told["metadata"]["timestamp"], told["serialNumber"]
    content = json.dumps(told, sort_keys=True)
    told["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}"
    return json.dumps(told, indent=1, sort_keys=True).encode() + b"\n"


def packages(bom: bytes) -> dict[str, str]:
    """Version by name."""
    return {component["name"]: component["version"] for component in json.loads(bom)["components"]}


def _installed(metadata: Iterable[PackageMetadata]) -> dict[str, PackageMetadata]:
    """By normalised name; of two, the one that is imported, which is first on the path."""
    whole = [found for found in metadata if _told(found, "Name") and _told(found, "Version")]
    return {canonicalize_name(_told(found, "Name")): found for found in reversed(whole)}


def _told(found: PackageMetadata, field: str) -> str:
    return str((found.get_all(field) or [""])[0]).strip()


def _licences(found: PackageMetadata) -> list[str]:
    """As declared: the SPDX expression, else the name, else what the classifiers say."""
    for field in ("License-Expression", "License"):
        text = _told(found, field)
        if text and text != "UNKNOWN" and len(text) <= LONGEST_NAME and "\n" not in text:
            return [text]
    classifiers = found.get_all("Classifier") or []
    return sorted({each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")})


def _needs(found: PackageMetadata) -> list[str]:
    """Names of what it requires here, extras left out."""
    needs = set()
    for line in found.get_all("Requires-Dist") or []:
        with suppress(InvalidRequirement):  # of packages older than the form
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                needs.add(canonicalize_name(need.name))
    return sorted(needs)
