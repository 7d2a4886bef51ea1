"""Bill of materials (CycloneDX 1.6) of the environment that made a model, or of an image."""

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
    """Return the bill of materials of the running environment."""
    return bill(package.metadata for package in distributions())  # a property that parses the file each time


def bill(metadata: Iterable[PackageMetadata], root: str = "hardcase", system: Iterable["Component"] = ()) -> bytes:
    """Return a bill of materials; the same packages give the same bytes.

    `metadata` comes in the order of the import path and may include the application's own, named `root`; `system` are
    components that are not Python packages.
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
    version = {name: _field(package, "Version") for name, package in installed.items()}
    components = {
        name: Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version[name],
            bom_ref=f"{name}@{version[name]}",
            purl=PackageURL("pypi", name=name, version=version[name]),
            licenses=[licence(text) for text in _licences(package)],
        )
        for name, package in sorted(installed.items())
    }
    bom = Bom(components=[*components.values(), *system])
    application = Component(
        type=ComponentType.APPLICATION, name=root, version=_field(own, "Version") if own else None, bom_ref=root
    )
    bom.metadata.component = application
    for component, package in [(application, own), *((components[name], installed[name]) for name in components)]:
        needs = _requirements(package) if package else []
        bom.register_dependency(component, [components[name] for name in needs if name in components])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}"
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def packages(bom: bytes) -> dict[str, str]:
    """Return the versions in a bill of materials, by name."""
    return {component["name"]: component["version"] for component in json.loads(bom)["components"]}


def _installed(metadata: Iterable[PackageMetadata]) -> dict[str, PackageMetadata]:
    """Return packages by normalised name; of two with one name, the one that is imported: the first on the path."""
    complete = [package for package in metadata if _field(package, "Name") and _field(package, "Version")]
    return {canonicalize_name(_field(package, "Name")): package for package in reversed(complete)}


def _field(package: PackageMetadata, field: str) -> str:
    return str((package.get_all(field) or [""])[0]).strip()


def _licences(package: PackageMetadata) -> list[str]:
    """Return the declared licences: the SPDX expression, else the name, else the classifiers."""
    for field in ("License-Expression", "License"):
        text = _field(package, field)
        if text and text != "UNKNOWN" and len(text) <= LONGEST_NAME and "\n" not in text:
            return [text]
    classifiers = package.get_all("Classifier") or []
    return sorted({name.rpartition(" :: ")[2] for name in classifiers if name.startswith("License :: ")})


def _requirements(package: PackageMetadata) -> list[str]:
    """Return the names of what a package requires in this environment, without extras."""
    names = set()
    for line in package.get_all("Requires-Dist") or []:
        with suppress(InvalidRequirement):  # old packages predate the syntax
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.add(canonicalize_name(requirement.name))
    return sorted(names)
