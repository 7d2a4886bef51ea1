"""What `hardcase audit` and `hardcase rollback` do on a machine: its store, its keys, its MLflow database."""

import getpass
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from components.register.mirror import Mirror
from hardcase.audit.diff import differences
from hardcase.audit.examine import Audit, examine
from hardcase.audit.ledger import Version, publish_dossier, read_ledger, roll_back, split_spec
from hardcase.data.store import open_store
from hardcase.errors import HardcaseError, InputError
from pipelines.display import showing
from pipelines.home import Home


def audited(spec: str, home: Home, keys: Sequence[Path]) -> Audit:
    """Audit a version in the home's store, and compare what MLflow shows."""
    with showing("audit"):
        return examine(
            open_store(home.store, near=False), spec, home.verifier(keys), Mirror(home.tracking_uri).differences
        )


def compared(name: str, first: str, second: str, home: Home, keys: Sequence[Path]) -> dict[str, Any]:
    """What changed from one version of a model to another, both audited first."""
    audits = [audited(f"{name}:{number.lstrip('v:')}", home, keys) for number in (first, second)]
    return differences(open_store(home.store), *audits)


def rebuild(spec: str, home: Home) -> None:
    """Write what only shows the ledger anew from it: MLflow's entries and the published dossiers."""
    store, keys = open_store(home.store), home.verifier()
    ledger = read_ledger(store, split_spec(spec), keys)
    if not ledger.moves:
        raise InputError(f"model {spec!r}: not registered in {store.uri}")
    for version in ledger.versions.values():
        publish_dossier(store, ledger.name, version)
    Mirror(home.tracking_uri).show(partial(read_ledger, store, ledger.name, keys), store.uri)


def rolled_back(name: str, home: Home, why: str) -> Version:
    """Let the champion before this one serve again, once it is found whole."""
    store, keys, name = open_store(home.store, near=False), home.keyring(), split_spec(name)

    def whole(version: Version) -> None:
        found = examine(store, f"{name}:{version.number}", keys)
        if found.first:
            raise HardcaseError(f"{name}:{version.number} cannot serve again: {found.first.problem}")

    who = os.environ.get("HARDCASE_WHO") or getpass.getuser()
    with showing("rollback"):
        version = roll_back(store, keys, name, who, why, whole)
        Mirror(home.tracking_uri).show(partial(read_ledger, store, name, keys), store.uri)
    return version
