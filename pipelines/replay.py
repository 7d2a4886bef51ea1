"""`hardcase audit --replay`: the recorded steps once more, from the recorded snapshot and configuration."""

import tempfile
from dataclasses import replace
from pathlib import Path

from hardcase.audit.code import code_digest
from hardcase.audit.examine import Audit
from hardcase.audit.provenance import Provenance
from hardcase.config import Profile
from hardcase.data.digest import path_digest
from hardcase.data.store import open_store
from hardcase.errors import HardcaseError, InputError
from pipelines.display import Bars
from pipelines.home import Home
from pipelines.local import child_environment, environment, execute
from pipelines.recording import RecordingCache
from pipelines.retraining import STEPS, replaying

# What each step makes that is the same bytes each time; pages for people may carry times.
COMPARED = {
    "ingest": ("snapshot",),
    "validate": ("result",),
    "sft": ("trained", "log"),
    "mine": ("mined",),
    "grpo": ("trained", "log"),
    "evaluate": ("evaluation", "baseline", "scores"),
    "drift": ("result",),
}


def replayed(audit: Audit, home: Home) -> dict[str, tuple[str, str]]:
    """Run a version's steps again.

    Args:
        audit: of the version, with nothing broken.
        home: its store holds the snapshot; nothing is registered, and nothing is taken from a cache.

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
        again = _run(provenance, audit.links["drift"].parameters["reference"], Path(folder), home)
    return {
        f"{step}.{output}": (audit.links[step].products[output], again[step, output])
        for step, outputs in COMPARED.items()
        for output in outputs
    }


def _run(provenance: Provenance, reference: str, folder: Path, home: Home) -> dict[tuple[str, str], str]:
    profile = _profile(provenance, folder, home)
    config = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    for unused in ("register", "source", "seed", "cluster"):
        config.pop(unused)
    scratch = replace(home, root=folder, place=home.store)
    arguments = {
        **config,
        "source": profile.source,
        "store": home.store,
        "scratch": str(scratch.scratch),
        "code": code_digest(),
        "seed": profile.seed,
        "reference": reference,
        "rollout_shards": ["1/1"],
        "answer_shards": ["1/1"],
    }
    steps = tuple(step for step in STEPS if step not in ("register", "report"))
    with Bars() as bars, environment(child_environment(profile, folder, home)):
        cache = RecordingCache(scratch.cache, steps, bars, lambda step, outputs: None)
        try:
            execute(lambda: replaying(**arguments), folder, scratch, cache, bars)
        except RuntimeError as error:
            raise HardcaseError(f"replay: {cache.current or 'the pipeline'} failed: {error}") from error
    outputs = {step: record.outputs for step, record in cache.records.items()}
    return {(step, name): path_digest(outputs[step][name]) for step, names in COMPARED.items() for name in names}


def _profile(provenance: Provenance, folder: Path, home: Home) -> Profile:
    """The recorded configuration; a base model from the store, whatever lies at its old place now."""
    config = dict(provenance.parameters["config"])
    if (base := provenance.dependencies.get("base_model")) is not None:
        open_store(home.store).get_folder(base.digest, folder / "base")
        config["model"] = {**config["model"], "checkpoint": str(folder / "base"), "revision": None}
    source = f"snapshot:{provenance.dependencies['snapshot'].digest}"
    return Profile.model_validate({**config, "seed": provenance.parameters["seed"], "source": source})
