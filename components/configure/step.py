"""configure: what every step of a run is given, from a profile and what the store says today; also of an evaluation."""

from pathlib import Path
from typing import Any, Final

from hardcase.audit.code import code_digest
from hardcase.audit.ledger import Version, fetch_model, find_version, read_ledger, split_spec
from hardcase.audit.signing import Keyring
from hardcase.config import GpuMemory, Profile
from hardcase.data.digest import bytes_digest, canonical_json
from hardcase.data.listing import source_digest
from hardcase.data.store import open_store

# CPUs and GiB of memory that go with each GPU; less than what AWS's instances have of it (docs/kubeflow.md).
PER_GPU: Final[dict[GpuMemory, tuple[int, int]]] = {"80gb": (8, 96), "24gb": (3, 12)}
WITHOUT_GPU: Final = (2, 8)


def plan(
    profile: Profile, name: str, store: str, tracking_uri: str, scratch: str, keys: Keyring, apart: Path | None = None
) -> dict[str, Any]:
    """The parameters of the pipeline `retraining`, undivided, as on one machine.

    Args:
        profile: the configuration.
        name: of the profile, for the report.
        store: URI of the object store.
        tracking_uri: of MLflow.
        scratch: folder of the steps' private folders.
        keys: who is trusted.
        apart: a folder that does not count as the source's, if it lies in it.
    """
    config = profile.model_dump(mode="json", by_alias=True, exclude_none=True)  # KFP takes no null
    seed, source = config.pop("seed"), config.pop("source")
    config.pop("cluster")
    code, listing = code_digest(), source_digest(source, apart)
    identity = {"source": source, "source_digest": listing, "config": config, "seed": seed, "code": code}
    fingerprint = bytes_digest(canonical_json(identity))
    champion, reference = read_ledger(open_store(store), profile.registration.name, keys).pin(fingerprint)
    return {
        "source": source,
        "source_digest": listing,
        "store": store,
        "tracking_uri": tracking_uri,
        "scratch": scratch,
        "code": code,
        "seed": seed,
        "champion": champion,
        "reference": reference,
        "fingerprint": fingerprint,
        "facts": {"profile": name, "source": source, "seed": str(seed), "fingerprint": fingerprint},
        "rollout_shards": ["1/1"],
        "answer_shards": ["1/1"],
        **config,
    }


def fetched_version(store: str, keys: Keyring, model: str, folder: Path) -> Version:
    """Write a registered version's files, every signature and digest verified.

    Args:
        store: URI of the object store.
        keys: who is trusted.
        model: `NAME`, `NAME@ALIAS` or `NAME:VERSION`.
        folder: for the files.

    Raises:
        InputError: no such model is registered.
        HardcaseError: it is not in the store as it was.
    """
    opened = open_store(store)
    version = find_version(opened, keys, model)
    fetch_model(opened, keys, f"{split_spec(model)}:{version.number}", folder)
    return version


def evaluation_plan(
    profile: Profile, model: str, version: Version, store: str, tracking_uri: str, scratch: str
) -> dict[str, Any]:
    """The parameters of the pipeline `evaluation`: all rows without a split are evaluated.

    Args:
        profile: the configuration; its `source` is evaluated on.
        model: what was asked for.
        version: what that is today; drift is told from the evaluation it was judged by.
        store: URI of the object store.
        tracking_uri: of MLflow.
        scratch: folder of the steps' private folders.
    """
    config = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked = machines(profile)
    return {
        "version": f"{split_spec(model)}:{version.number}",
        "reference": version.evaluation,
        "source": profile.source,
        "source_digest": source_digest(profile.source),
        "store": store,
        "tracking_uri": tracking_uri,
        "scratch": scratch,
        "code": code_digest(),
        "seed": profile.seed,
        "ingest": {**config["ingest"], "eval_share": 1.0},
        "evaluate": config["evaluate"],
        "drift": config["drift"],
        **{name: asked[name] for name in ("answer_shards", "nodes", "shard_gpus", "shard_cpus", "shard_memory")},
    }


def machines(profile: Profile) -> dict[str, Any]:
    """What differs on a cluster: shards, and what pods ask for, those that train and those that answer a shard."""
    gpu = profile.cluster.gpu_memory
    # Where several nodes train, the step only waits for them: their GPUs are the TrainingRuntime's.
    train = max(phase.processes if phase.nodes == 1 else 0 for phase in (profile.sft, profile.grpo)) if gpu else 0
    one = 1 if gpu else 0
    cpus, memory = PER_GPU[gpu] if gpu else WITHOUT_GPU
    return {
        "rollout_shards": _shards(profile.cluster.rollout_shards),
        "answer_shards": _shards(profile.cluster.answer_shards),
        "nodes": {"hardcase.io/gpu-memory": gpu} if gpu else {"hardcase.io/pool": "steps"},
        "train_gpus": train,
        "train_cpus": str(cpus * max(train, 1)),
        "train_memory": f"{memory * max(train, 1)}Gi",
        "shard_gpus": one,
        "shard_cpus": str(cpus),
        "shard_memory": f"{memory}Gi",
    }


def _shards(number: int) -> list[str]:
    return [f"{shard}/{number}" for shard in range(1, number + 1)]
