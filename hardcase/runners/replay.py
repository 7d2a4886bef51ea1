"""`hardcase audit --replay`: the recorded steps once more, from the recorded snapshot and configuration."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from hardcase.audit.examine import Audit
from hardcase.config import Profile
from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import Link
from hardcase.provenance.code import code_digest
from hardcase.provenance.statement import SNAPSHOT, Provenance, listed
from hardcase.runners.display import Bars
from hardcase.runners.home import Home
from hardcase.runners.local import child_environment, environment, execute
from hardcase.runners.recording import RecordingCache
from hardcase.steps.configure import UNDIVIDED, WHOLE
from hardcase.store.store import object_name, open_store
from pipelines.retraining import REPLAYED, replaying

# Products that need not be the same bytes: pages that carry a time, and what was refused of another source.
OTHER: Final = ("quarantine", "validation_docs", "drift_report")


def replayed(audit: Audit, home: Home) -> dict[str, tuple[str, str]]:
    """Run a version's steps again.

    Args:
        audit: of the version, with nothing broken.
        home: its store holds the snapshot and is only read; nothing is registered, and nothing is taken from a cache.

    Returns:
        By `step.output` the recorded and the new sha256.

    Raises:
        InputError: this is not the code that made the version.
        HardcaseError: a step failed.
    """
    provenance = audit.provenance
    assert provenance is not None
    if (recorded := provenance.dependencies["code"].digest) != code_digest():
        commit = provenance.dependencies["git commit"].notes.get("commit", "unknown")
        raise InputError(
            f"{audit.tree.what}: made by other code ({recorded[:12]}, git commit {commit}) than this "
            f"({code_digest()[:12]}); check that commit out, and replay with it"
        )
    home.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.root, prefix="replay-") as folder:
        again = _run(audit, provenance, Path(folder), home)
    return {
        f"{step}.{product}": (digest, again[step].products.get(product, "missing"))
        for step in REPLAYED
        for product, digest in audit.links[step].products.items()
        if product not in OTHER
    }


def _run(audit: Audit, provenance: Provenance, folder: Path, home: Home) -> dict[str, Link]:
    profile = _profile(provenance, folder, home)
    config = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    for unused in ("register", "source", "seed", "cluster"):
        config.pop(unused)
    scratch = replace(home, root=folder, place="")
    reference = audit.links["drift"].parameters["reference"]
    _copy(home.store, scratch.store, provenance.dependencies["snapshot"].digest, reference)
    arguments = {
        "start": config.pop("model"),
        **config,
        "place": {"store": scratch.store, "scratch": str(scratch.scratch), "code": code_digest()},
        "source": profile.source,
        "source_digest": "",
        "seed": profile.seed,
        "reference": reference,
        **UNDIVIDED,
        "rollout_shards": {**WHOLE, "shards": audit.links["rollout"].parameters["shards"]},
    }
    with Bars() as bars, environment(child_environment(profile, folder, home)):
        cache = RecordingCache(scratch.cache, REPLAYED, bars, open_store(scratch.store), lambda link: None)
        try:
            execute(lambda: replaying(**arguments), folder, scratch, cache, bars)
        except RuntimeError as error:
            raise HardcaseError(f"replay: {cache.current or 'the pipeline'} failed: {error}") from error
    return cache.links


def _copy(place: str, other: str, snapshot: str, reference: str) -> None:
    """Copy to another store what the steps read that none of them makes."""
    store, copy = open_store(place), open_store(other)
    manifest = store.get_object(snapshot)
    copy.put_object(manifest)
    for data in store.get_objects(list(listed(manifest, SNAPSHOT, object_name(snapshot)).values())):
        copy.put_object(data)
    if reference:
        copy.put_object(store.get_object(reference))


def _profile(provenance: Provenance, folder: Path, home: Home) -> Profile:
    """The recorded configuration; a base model from the store, whatever lies at its old place now."""
    config = dict(provenance.parameters["config"])
    if (base := provenance.dependencies.get("base_model")) is not None:
        open_store(home.store).get_folder(base.digest, folder / "base")
        config["model"] = {**config["model"], "checkpoint": str(folder / "base"), "revision": None}
    source = f"snapshot:{provenance.dependencies['snapshot'].digest}"
    return Profile.model_validate({**config, "seed": provenance.parameters["seed"], "source": source})
