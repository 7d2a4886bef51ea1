"""The work of `hardcase audit` on a machine: its store, its keys, its MLflow."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hardcase.audit.compare import compare_versions
from hardcase.audit.examine import Audit, examine
from hardcase.errors import InputError, UnavailableError, UncheckedError
from hardcase.registry.ledger import Ledger, publish_dossier, read_ledger, split_spec
from hardcase.registry.mirror import Mirror, UnshownError
from hardcase.runners.display import showing
from hardcase.runners.home import Home
from hardcase.store.store import open_store

logger = logging.getLogger(__name__)


def audited(spec: str, home: Home, keys: Sequence[Path]) -> Audit:
    """Audit a version in the home's store, and compare what MLflow shows, if it can be asked.

    Raises:
        UncheckedError: the store does not answer.
    """
    mirror = Mirror(home.tracking_uri)

    def shown(ledger: Ledger) -> Sequence[str]:
        try:
            return mirror.find_differences(ledger)
        except UnshownError as error:
            logger.warning("what MLflow shows was not compared: %s", error)
            return []

    try:
        with showing("audit"):
            return examine(open_store(home.store, cached=False, create=False), spec, home.verifier(keys), shown)
    except UnavailableError as error:
        raise UncheckedError(f"{spec} could not be checked: {error}; audit it again") from error


def compared(name: str, first: str, second: str, home: Home, keys: Sequence[Path]) -> dict[str, Any]:
    """Return the differences between two versions of a model, both audited first."""
    audits = [audited(f"{name}:{number.lstrip('v:')}", home, keys) for number in (first, second)]
    return compare_versions(open_store(home.store, create=False), *audits)


def rebuild(spec: str, home: Home) -> None:
    """Write MLflow's entries and the published dossiers again from the ledger."""
    store, keys = open_store(home.store, create=False), home.verifier()
    ledger = read_ledger(store, split_spec(spec), keys)
    if not ledger.moves:
        raise InputError(f"model {spec!r}: not registered in {store.uri}")
    for version in ledger.versions.values():
        publish_dossier(store, ledger.name, version)
    Mirror(home.tracking_uri).show(partial(read_ledger, store, ledger.name, keys), store.uri)
