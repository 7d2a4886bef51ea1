"""configure: what every step of a run is given, from a profile and what the store says today; also of an evaluation."""

import math
from pathlib import Path
from typing import Any, Final

from hardcase.config import GpuMemory, Profile
from hardcase.data.listing import source_digest
from hardcase.provenance.code import code_digest
from hardcase.provenance.signing import Keyring
from hardcase.registry.ledger import Version, fetch_model, find_version, read_ledger, split_spec
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import open_store

# CPUs and GiB of memory that go with each GPU; less than AWS's instances have (docs/how-to/launch-on-kubeflow.md).
PER_GPU: Final[dict[GpuMemory, tuple[int, int]]] = {"80gb": (8, 96), "24gb": (3, 12)}
# Of a pod that trains or answers on CPUs, or waits for its nodes: with what else runs there it fits two CPUs and 8 GiB.
WITHOUT_GPU: Final = ("1500m", "4Gi")

# On one machine: among how many processes and nodes a step's samples are divided, and GPUs that it must see.
WHOLE: Final = {"shards": 1, "nodes": 1}
UNDIVIDED: Final = {
    "rollout_shards": WHOLE,
    "answer_shards": WHOLE,
    **dict.fromkeys(("sft_gpus", "rollout_gpus", "grpo_gpus", "answer_gpus"), ""),
}


def plan(
    profile: Profile, store: str, tracking_uri: str, scratch: str, keys: Keyring, apart: Path | None = None
) -> dict[str, Any]:
    """The parameters of the pipeline `retraining`, its shards undivided, as on one machine.

    Args:
        profile: the configuration.
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
        "place": {"store": store, "scratch": scratch, "code": code},
        "source": source,
        "source_digest": listing,
        "seed": seed,
        "reference": reference,
        "launch": {"champion": champion, "fingerprint": fingerprint, "tracking_uri": tracking_uri},
        **UNDIVIDED,
        "start": config.pop("model"),
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
    return {
        "place": {"store": store, "scratch": scratch, "code": code_digest()},
        "launch": {"version": f"{split_spec(model)}:{version.number}", "tracking_uri": tracking_uri},
        "reference": version.evaluation,
        "source": profile.source,
        "source_digest": source_digest(profile.source),
        "seed": profile.seed,
        "ingest": {**config["ingest"], "eval_share": 1.0},
        "evaluate": config["evaluate"],
        "drift": config["drift"],
        **{name: value for name, value in machines(profile).items() if name.startswith("answer_")},
    }


def machines(profile: Profile) -> dict[str, Any]:
    """Find what the pods of the steps with a model ask for, and how answering is divided.

    Kubernetes takes every amount as text; KFP's driver drops a number without a word (kubeflow/pipelines 2.17.0,
    backend/src/v2/driver/resolve.go:818). An empty number of GPUs asks for none.

    Returns:
        For sft, rollout, grpo and answer: `<step>_gpus`, `<step>_cpus`, `<step>_memory`, `<step>_nodes` (labels of the
        node); for rollout and answer also `<step>_shards`.
    """
    gpu, sft, grpo = profile.cluster.gpu_memory, profile.sft, profile.grpo
    per_node = max(sft.processes, grpo.processes)
    wanted = {"sft": (sft.processes, sft.nodes), "grpo": (grpo.processes, grpo.nodes)}
    found = dict[str, Any]()
    for step, shards in (("rollout", profile.cluster.rollout_shards), ("answer", profile.cluster.answer_shards)):
        nodes = math.ceil(shards / per_node) if gpu else 1
        found[f"{step}_shards"] = {"shards": shards, "nodes": nodes}
        wanted[step] = (shards, nodes)
    for step, (gpus, nodes) in wanted.items():
        # Where several nodes work, the step only waits for them: their GPUs are the TrainingRuntime's.
        found |= {f"{step}_{what}": value for what, value in _pod(gpu, gpus if nodes == 1 else 0).items()}
    return found


def _pod(gpu: GpuMemory | None, gpus: int) -> dict[str, Any]:
    if not gpu or not gpus:
        cpus, memory = WITHOUT_GPU
        return {"gpus": "", "cpus": cpus, "memory": memory, "nodes": {"hardcase.io/pool": "steps"}}
    each, gib = PER_GPU[gpu]
    label = {"hardcase.io/gpu-memory": gpu}
    return {"gpus": str(gpus), "cpus": str(gpus * each), "memory": f"{gpus * gib}Gi", "nodes": label}
