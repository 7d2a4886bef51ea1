"""fetch: the files of a registered version, and the plans of the steps that score it with its recorded settings."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardcase.config import load_evaluation_profile
from hardcase.data.weights import refuse_pickles
from hardcase.provenance.code import code_digest
from hardcase.provenance.openlineage import emit
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import read_provenance
from hardcase.registry.ledger import Version, fetch_model, find_version, read_ledger, split_spec
from hardcase.runtime.devices import require_devices
from hardcase.runtime.materials import keyring
from hardcase.runtime.running import read_locations, running
from hardcase.steps.configure import check_context, plan_evaluation, plan_type
from hardcase.steps.preflight import check_surroundings
from hardcase.store.digest import canonical_json, path_digest
from hardcase.store.store import Store, write_atomically

EvaluationPlan = plan_type("EvaluationPlan", ("ingest", "answer", "evaluate", "drift"), model=str)


def execute(model: str, source: str, settings: Mapping[str, Any]) -> Any:
    """Fetch a model, and return the plans of its evaluation.

    `model` is `NAME`, `NAME@ALIAS`, `NAME:VERSION`, or a folder that this process sees; `settings` change keys of the
    recorded configuration.
    """
    locations = read_locations()
    registered: dict[str, str] = {}
    plan = {**locations, "parameters": {"code": code_digest(), "model": model}}
    with running("fetch", plan, {}, registered) as work:
        emit("START", os.environ.get("HARDCASE_RUN", ""))
        check_surroundings(work.store, keyring(), locations["tracking_uri"], os.environ)
        version = fetch(work.store, keyring(), model, work.outputs / "model")
        name, alias = (split_spec(model), "") if version else (model, "")
        if version:
            registered["statement"] = version.statement
            aliases = read_ledger(work.store, name, keyring()).aliases
            alias = next((alias for alias, number in aliases.items() if number == version.number), "")
        recorded = read_configuration(work.store, keyring(), version) if version else {}
        described = {
            "name": name,
            "version": version.number if version else None,
            "alias": alias,
            "digest": version.digest if version else path_digest(work.outputs / "model"),
        }
        write_atomically(work.outputs / "version", canonical_json(described))
        profile = load_evaluation_profile(recorded, {**settings, "source": source})
        require_devices(profile)
        check_context(profile, work.outputs / "model", model)
        per_node = max(int(recorded.get(step, {}).get("processes", 1)) for step in ("sft", "grpo"))
        plans = plan_evaluation(profile, version.evaluation if version else "", locations, per_node)
    return EvaluationPlan(model=work.attestation, **plans)


def fetch(store: Store, keys: Keyring, model: str, folder: Path) -> Version | None:
    """Write a model's files into a folder, all signatures and digests verified; return its version, if any."""
    if Path(model).is_dir():
        refuse_pickles(Path(model))
        shutil.copytree(model, folder, dirs_exist_ok=True)
        return None
    version = find_version(store, keys, model)
    fetch_model(store, keys, f"{split_spec(model)}:{version.number}", folder)
    return version


def read_configuration(store: Store, keys: Keyring, version: Version) -> dict[str, Any]:
    """Return the configuration recorded with a version, with its seed."""
    what = f"statement {version.statement}"
    parameters = read_provenance(keys.open_envelope(store.get_object(version.statement), what), what).parameters
    return {**parameters["config"], "seed": parameters["seed"]}
