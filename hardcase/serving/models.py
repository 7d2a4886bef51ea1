"""Open a model to screen with: fetched from the registry and verified, with its recorded settings and calibration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hardcase.config import EvaluateConfig, load_evaluation_profile
from hardcase.formats import check_format
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import fetch_provenance
from hardcase.registry.ledger import Version
from hardcase.stats.calibration import FORMAT
from hardcase.steps.fetch import fetch, read_configuration
from hardcase.store.store import Store

CALIBRATION: Final = "calibration"


@dataclass(frozen=True)
class FetchedModel:
    """A model's folder, its version or None for a folder of the user, and how it is asked."""

    folder: Path
    version: Version | None
    config: EvaluateConfig
    calibration: dict[str, Any] | None


def fetch_for_screening(
    store: Store, keys: Keyring, model: str, folder: Path, settings: Mapping[str, Any]
) -> FetchedModel:
    """Fetch a model into a folder, all signatures and digests verified.

    Args:
        store: store of the registry.
        keys: trusted keys.
        model: `NAME`, `NAME@ALIAS`, `NAME:VERSION`, or a folder.
        folder: an empty folder, or a path that does not exist yet.
        settings: keys of the recorded configuration to change.

    Raises:
        InputError: no such model, or a setting that the configuration refuses.
        HardcaseError: the stored model or its record is damaged.
    """
    version = fetch(store, keys, model, folder)
    recorded = read_configuration(store, keys, version) if version else {}
    config = load_evaluation_profile(recorded, {"source": "", **settings}).evaluate
    return FetchedModel(folder, version, config, read_calibration(store, keys, version) if version else None)


def read_calibration(store: Store, keys: Keyring, version: Version) -> dict[str, Any] | None:
    """Return the calibration that is signed with a version; None for a version that has none."""
    resource = fetch_provenance(store, keys, version.statement).byproducts.get(CALIBRATION)
    if resource is None:
        return None
    calibration: dict[str, Any] = json.loads(store.get_object(resource.digest))
    check_format(calibration["format"], FORMAT, f"calibration {resource.digest}")
    return calibration
