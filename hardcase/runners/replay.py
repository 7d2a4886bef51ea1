"""Replay a version: the same pipeline again, from the recorded snapshot and configuration, in a store of its own."""

import shutil
from pathlib import Path
from typing import Final

import yaml

from hardcase.audit.examine import Audit
from hardcase.config.training import split_reward
from hardcase.database import database_uri
from hardcase.errors import HardcaseError, InputError
from hardcase.lifetime import temporary_folder
from hardcase.provenance.attestations import Attestation, follow
from hardcase.provenance.code import code_digest
from hardcase.provenance.signing import KEYS, SIGNING_FILE
from hardcase.provenance.statement import SNAPSHOT, Provenance, list_members
from hardcase.registry.account import REWARDS
from hardcase.registry.ledger import Ledger, Version, entry_name
from hardcase.runners.containers import Inputs
from hardcase.runners.home import Home
from hardcase.runners.local import environment, run_pipeline
from hardcase.store.store import Store, open_store

# Products that need not be the same bytes: pages that carry a time, and what was refused of another source.
IGNORED: Final = ("quarantine", "validation_docs", "drift_report", "registration")


def replay(audit: Audit, home: Home) -> dict[str, dict[str, str]]:
    """Run a version's steps again; return the sha256 `recorded` and `again`, by `step.output`.

    The audit found nothing broken. The store of `home` holds the snapshot and is only read: nothing is registered there
    or taken from its cache. Other code than that which made the version is refused.
    """
    provenance, version = audit.provenance, audit.version
    if provenance is None or version is None:
        raise HardcaseError(f"{audit.tree.what}: cannot be replayed: its statement is broken")
    if (recorded := provenance.dependencies["code"].digest) != code_digest():
        commit = provenance.dependencies["git commit"].notes.get("commit", "unknown")
        raise InputError(
            f"{audit.tree.what}: made by other code ({recorded[:12]}, git commit {commit}) than this "
            f"({code_digest()[:12]}); check that commit out, and replay with it"
        )
    home.root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(home.root) as folder:
        links = _run(audit.ledger, version, provenance, home, Home(folder))
    new = {(step, product): digest for step, link in links.items() for product, digest in link.products.items()}
    return {
        f"{step}.{product}": {"recorded": digest, "again": new.get((step, product), "missing")}
        for step, link in audit.links.items()
        for product, digest in link.products.items()
        if product not in IGNORED
    }


def _run(ledger: Ledger, version: Version, provenance: Provenance, home: Home, scratch: Home) -> dict[str, Attestation]:
    """Run the pipeline in a home of its own, and return its attestations by step."""
    store, copy = open_store(home.store), open_store(scratch.store)
    _copy_inputs(ledger, version, provenance, store, copy)
    config, checkpoint = dict(provenance.parameters["config"]), ""
    if (base := provenance.dependencies.get("base_model")) is not None:  # whatever its old path holds now
        checkpoint = str(scratch.root / "base")
        store.get_folder(base.digest, Path(checkpoint))
        config["model"] = {**config["model"], "checkpoint": checkpoint, "revision": None}
    if (files := provenance.dependencies.get(REWARDS)) is not None:
        store.get_folder(files.digest, scratch.root / REWARDS)
        weights = {":".join(split_reward(name)): weight for name, weight in config["grpo"]["rewards"].items()}
        rewards = {f"{scratch.root / REWARDS}/{name}": weight for name, weight in weights.items()}
        config["grpo"] = {**config["grpo"], "rewards": rewards}
    profile, source = scratch.root / "recorded.yaml", f"snapshot:{provenance.dependencies['snapshot'].digest}"
    profile.write_text(yaml.safe_dump({**config, "source": source}), encoding="utf-8")
    arguments = {"profile": str(profile), "source": source, "seed": provenance.parameters["seed"], "settings": {}}
    if home.keys.is_dir():
        shutil.copytree(home.keys, scratch.keys, ignore=shutil.ignore_patterns(SIGNING_FILE))
    apart = {**home.signing_environment(), "MLFLOW_TRACKING_URI": database_uri(scratch.root / "mlflow.db")}
    with environment({**apart, "HARDCASE_WEBHOOK": "", "HARDCASE_SMTP_HOST": ""}):  # a replay notifies no user
        outcome = run_pipeline("retraining", arguments, scratch, Inputs((str(profile), checkpoint)))
    if error := outcome.record["error"]:
        raise HardcaseError(f"replay: {error['step']} failed: {error['message']}")
    links = follow(copy, home.keyring(), [outcome.record["attestation"]])
    return {link.step: link for link in links.values()}


def _copy_inputs(ledger: Ledger, version: Version, provenance: Provenance, store: Store, copy: Store) -> None:
    """Copy to another store what no step writes: the snapshot, keys, and the ledger at the launch."""
    snapshot = provenance.dependencies["snapshot"].digest
    for data in store.get_objects([snapshot, *list_members(store, snapshot, SNAPSHOT).values()]):
        copy.put_object(data)
    for key in store.list_names(KEYS):
        copy.put_named(key, store.get_named(key) or b"")
    for number in range(_count_entries(ledger, version)):
        key = entry_name(ledger.name, number + 1)
        copy.put_named(key, store.get_named(key) or b"")
    for other in ledger.versions.values():
        if other.evaluation == version.reference_evaluation or str(other.number) == version.reference:
            copy.put_object(store.get_object(other.evaluation))


def _count_entries(ledger: Ledger, version: Version) -> int:
    """Return how many entries the ledger had when the version's run was launched, by what the run was pinned to."""
    own = next(index for index, move in enumerate(ledger.moves) if move.made == version)
    pinned = (version.pinned, version.reference_evaluation)
    for count in range(own, -1, -1):
        if Ledger(ledger.name, ledger.moves[:count]).pin("") == pinned:
            return count
    raise HardcaseError(f"{ledger.name}:{version.number}: no state of the ledger explains what it was compared with")
