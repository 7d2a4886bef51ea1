"""What passes between steps: an artifact is the signed attestation of a step, its products lie in the object store."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hardcase.audit.links import Link, open_link
from hardcase.audit.products import fetch_product
from hardcase.audit.signing import DistrustError, Keyring, open_keyring
from hardcase.data.digest import bytes_digest
from hardcase.data.store import Store
from hardcase.errors import HardcaseError


class Artifact(Protocol):
    """What is used of KFP's artifact."""

    name: str
    metadata: dict[str, Any]

    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class Material:
    """What a step reads.

    Attributes:
        name: of the product.
        digest: its sha256.
        kind: its media type.
        made_by: sha256 of the attestation of the step that made it.
    """

    name: str
    digest: str
    kind: str
    made_by: str


@dataclass(frozen=True)
class Work:
    """What a step works with.

    Attributes:
        folder: private; the same for the same work, empty the first time, gone after success.
        materials: what the step reads, by name.
        store: where that lies, and where the products go.
    """

    folder: Path
    materials: Mapping[str, Material]
    store: Store

    def input(self, name: str) -> Path:
        """Return the path of a product of an earlier step, fetched and verified.

        Raises:
            HardcaseError: it is missing or altered.
        """
        material = self.materials[name]
        return fetch_product(self.store, material.digest, material.kind, self.folder / "inputs" / name)

    def output(self, name: str) -> Path:
        """Return the path at which the step writes one of its products."""
        return self.outputs / name

    @property
    def outputs(self) -> Path:
        """Folder of the products."""
        return self.folder / "outputs"


def attested(artifact: Artifact, keys: Keyring) -> tuple[str, Link]:
    """Return the sha256 of an artifact's attestation, found equal to the one in its metadata, and its link.

    Raises:
        HardcaseError: it is missing or altered.
        DistrustError: no step that is trusted signed it.
    """
    path = Path(artifact.path)
    envelope = path.read_bytes() if path.is_file() else b""
    if (digest := bytes_digest(envelope)) != artifact.metadata.get("attestation"):
        raise HardcaseError(f"{path}: artifact {artifact.name!r} is missing or altered; run again to make it anew")
    link = open_link(envelope, keys, f"artifact {artifact.name!r}")
    if link.content != artifact.metadata.get("sha256"):
        raise DistrustError(f"{path}: artifact {artifact.name!r} is not what its step signed; run again")
    return digest, link


def material_of(name: str, artifact: Artifact, keys: Keyring) -> Material:
    """Return what an artifact's step made, or itself read, under that name.

    Raises:
        HardcaseError: the artifact is missing or altered, or its step knows nothing of that name.
    """
    digest, link = attested(artifact, keys)
    if name in link.products:
        return Material(name, link.products[name], link.kind(name), digest)
    if name in link.made_by:
        return Material(name, link.materials[name], link.kind(name), link.made_by[name])
    raise HardcaseError(f"artifact {artifact.name!r}: {link.step} made no {name}; run again to make it anew")


def keyring() -> Keyring:
    """What this process signs with and whom it trusts: `HARDCASE_SIGNING_KEY`, and folders in `HARDCASE_TRUSTED_KEYS`.

    Raises:
        HardcaseError: it was given no key.
    """
    if not (signing := os.environ.get("HARDCASE_SIGNING_KEY")):
        raise HardcaseError("no signing key: set HARDCASE_SIGNING_KEY to a private key in PEM, or awskms:ID")
    return _keyring(signing, os.environ.get("HARDCASE_TRUSTED_KEYS", ""))


@cache
def _keyring(signing: str, trusted: str) -> Keyring:
    return open_keyring(signing, [Path(place) for place in trusted.split(os.pathsep) if place])
