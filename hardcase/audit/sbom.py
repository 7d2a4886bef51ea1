"""What is installed where a model was made, as a CycloneDX 1.6 bill of materials."""

import json
import uuid
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAMESPACE: Final = uuid.UUID("6f1d3c52-7f0e-5d2b-9a53-0c4f1f0f6a11")


@cache
def sbom() -> bytes:
    """Of the running environment: the same packages give the same bytes."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    installed = {_normal(found): found for found in distributions()}
    own = installed.pop("hardcase", None)
    components = {
        name: Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=found.version,
            bom_ref=f"{name}@{found.version}",
            purl=PackageURL("pypi", name=name, version=found.version),
        )
        for name, found in sorted(installed.items())
    }
    bom = Bom(components=components.values())
    root = Component(
        type=ComponentType.APPLICATION, name="hardcase", version=own.version if own else None, bom_ref="hardcase"
    )
    bom.metadata.component = root
    bom.register_dependency(root, [components[name] for name in _needs(own) if name in components] if own else [])
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


def _normal(found: Distribution) -> str:
    return canonicalize_name(found.metadata["Name"])


def _needs(found: Distribution) -> list[str]:
    """Names of what it requires here, extras left out."""
    requirements = [Requirement(line) for line in found.requires or []]
    here = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return sorted({canonicalize_name(each.name) for each in here})
