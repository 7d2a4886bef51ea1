"""What passes between steps: the sha256 of a step's signed attestation; the store holds all that it names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import fetch_attestation
from hardcase.provenance.products import fetch_product
from hardcase.provenance.signing import Keyring, list_trusted, open_keyring
from hardcase.store.store import Store, object_name


@dataclass(frozen=True)
class Material:
    """What a step reads.

    `kind` is a media type; `attested_by` is the sha256 of the attestation of the step that wrote it.
    """

    name: str
    digest: str
    kind: str
    attested_by: str


@dataclass
class Work:
    """What a step works with.

    `folder` is private: the same for the same work, empty the first time, removed after success. `materials` are what
    the step reads, by name. `plan` is what `configure` hands to the step. `attestation`, the sha256 of what the step
    signed, is set once it is done. `cached` tells whether its result existed before.
    """

    folder: Path
    materials: Mapping[str, Material]
    store: Store
    plan: Mapping[str, Any]
    attestation: str = ""
    cached: bool = False

    @property
    def config(self) -> Any:
        """Configuration of the step, not yet validated."""
        return self.plan["parameters"]["config"]

    @property
    def seed(self) -> int:
        """Seed of everything that the step draws."""
        return int(self.plan["parameters"]["seed"])

    def input(self, name: str) -> Path:
        """Return the path of a product of an earlier step, fetched and verified."""
        material = self.materials[name]
        return fetch_product(self.store, material.digest, material.kind, self.folder / "inputs" / name)

    @property
    def outputs(self) -> Path:
        """Folder of the products."""
        return self.folder / "outputs"


def material_of(name: str, attestation: str, store: Store, keys: Keyring) -> Material:
    """Return what an attested step wrote, or itself read, under that name."""
    link = fetch_attestation(store, keys, attestation)
    if name in link.products:
        return Material(name, link.products[name], link.media_type(name), attestation)
    if name in link.attested_by:
        return Material(name, link.materials[name], link.media_type(name), link.attested_by[name])
    raise HardcaseError(f"{object_name(attestation)}: {link.step} made no {name}; run again to make it")


def keyring() -> Keyring:
    """Return the keyring of `HARDCASE_SIGNING_KEY` that trusts what `HARDCASE_TRUSTED_KEYS` and the home name."""
    if not (signing := os.environ.get("HARDCASE_SIGNING_KEY")):
        raise InputError("no signing key: set HARDCASE_SIGNING_KEY to a private key in PEM, or awskms:ID")
    home = os.environ.get("HARDCASE_HOME")
    return _keyring(signing, *list_trusted(Path(home) if home else None))


@cache
def _keyring(signing: str, *trusted: Path) -> Keyring:
    return open_keyring(signing, trusted)
