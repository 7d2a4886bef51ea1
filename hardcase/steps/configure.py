"""configure: the plan of every step of a run, from a profile and the registry's present state.

A plan holds where a step works (`store`, `scratch`, `tracking_uri`, `metrics`), on what (`gpus`, `shards`, `nodes`),
and `parameters`: what identifies the step's work. The step signs those, and its cached result counts for no others.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from hardcase.config import EvaluationProfile, GpuMemory, Profile, RegisterConfig, load_profile
from hardcase.data.listing import source_digest
from hardcase.errors import HardcaseError, InputError, UnavailableError
from hardcase.model.rewards import read_reward_files
from hardcase.provenance.code import code_digest
from hardcase.provenance.openlineage import emit
from hardcase.registry.ledger import Ledger, entry_name, read_ledger
from hardcase.runtime.devices import require_devices
from hardcase.runtime.materials import keyring
from hardcase.runtime.running import METRICS, namespace_of, noted, read_locations
from hardcase.steps.preflight import check_surroundings, refused
from hardcase.store.control import retain
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store, open_store

# What identifies a step's work besides the code and the step's configuration.
PARAMETERS: Final = {
    "ingest": ("source",),
    "validate": (),
    "sft": ("seed", "model"),
    "rollout": ("seed", "hold_out"),
    "mine": ("hold_out",),
    "grpo": ("seed", "reward_files", "hold_out"),
    "answer": ("seed",),
    "evaluate": ("seed",),
    "drift": ("reference",),
    "register": ("seed", "champion", "fingerprint", "cluster"),
}
SECTIONS: Final = {"rollout": "mine", "answer": "evaluate"}  # of the configuration, where it is not the step's name
ON_GPUS: Final = ("sft", "rollout", "grpo", "answer")
REQUESTS: Final = {"gpus": str, "cpus": str, "memory": str, "nodes": dict}
# CPUs and GiB of memory that go with each GPU; less than AWS's instances have (docs/how-to/launch-on-kubeflow.md).
PER_GPU: Final[dict[GpuMemory, tuple[int, int]]] = {"80gb": (8, 96), "24gb": (3, 12)}
# Of a pod that trains or answers on CPUs, or waits for its nodes: with what else runs there it fits two CPUs and 8 GiB.
WITHOUT_GPU: Final = ("1500m", "4Gi")
HUB_ID: Final = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


def plan_type(name: str, steps: Iterable[str], **more: type) -> Any:
    """Return the type of a planning step's result: the plan of each step, and the requests to Kubernetes."""
    requests = [(f"{step}_{what}", kind) for step in steps if step in ON_GPUS for what, kind in REQUESTS.items()]
    return NamedTuple(name, [*more.items(), *((step, dict) for step in steps), *requests])


RetrainingPlan = plan_type("RetrainingPlan", PARAMETERS)


def execute(profile: str, source: str, seed: int, settings: Mapping[str, Any]) -> Any:
    """Return the plans of a retraining.

    `profile` is a name or path, an empty `source` the profile's own, `settings` are keys of the profile to change.
    """
    with noted("configure") as record:
        emit("START", os.environ.get("HARDCASE_RUN", ""))
        chosen = load_profile(profile, {**settings, "seed": int(seed), **({"source": source} if source else {})})
        locations = read_locations()
        check_surroundings(open_store(locations["store"]), keyring(), locations["tracking_uri"], os.environ)
        check_model(chosen)
        require_devices(chosen)
        pinned = pin_run(chosen, locations["store"])
        record.cached = pinned.pop("registered")
        return RetrainingPlan(**plan_retraining(chosen, pinned, locations))


def check_model(profile: Profile) -> None:
    """Refuse a profile that does not fit the model it starts from, as far as that is on this machine."""
    if checkpoint := profile.model.checkpoint:
        folder = Path(checkpoint)
        if not (HUB_ID.fullmatch(checkpoint) or folder.is_dir() or "KUBERNETES_SERVICE_HOST" in os.environ):
            raise InputError(f"model.checkpoint {checkpoint}: no such folder, and no id of the hub; correct it")
        if HUB_ID.fullmatch(checkpoint) and not folder.is_dir():
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(checkpoint, "config.json", revision=profile.model.revision)
            folder = Path(cached).parent if isinstance(cached, str) else folder
        check_context(profile, folder, checkpoint)
    phases = {"sft": profile.sft, "sft.warm_up": profile.sft.warm_up, "sft.reading": profile.sft.reading}
    if any(phase and phase.trl for phase in (profile.grpo, *phases.values())) and find_spec("torch"):
        from hardcase.model.grpo import build_grpo_arguments
        from hardcase.model.sft import build_sft_arguments

        build_grpo_arguments(profile.grpo, profile.seed, Path())
        for section, phase in phases.items():
            if phase is not None:
                build_sft_arguments(phase, profile.seed, Path(), section)
    if (profile.sft.lora or profile.grpo.lora) and find_spec("torch"):
        from hardcase.model.internvl import build_outline
        from hardcase.model.training import build_lora_config

        if (outline := build_outline(profile.model)) is not None:
            build_lora_config(profile.sft, outline, "sft")
            build_lora_config(profile.grpo, outline, "grpo")


def check_context(profile: Profile | EvaluationProfile, folder: Path, model: str) -> None:
    """Refuse completions that the context of a model in a folder has no room for; `model` is what the user calls it."""
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = int(described["image_seq_length"]), int(described["text_config"]["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading the model reports what is wrong with it
    if misfit := profile.explain_misfit(*sizes):
        raise InputError(f"model {model}: {misfit}")


def pin_run(profile: Profile, store: str) -> dict[str, Any]:
    """Return what a run is made of and compared with at its launch.

    The values are `source` (URI and digest), `fingerprint` (sha256 of source, configuration, seed and code), `champion`
    (number of the version to beat), `reference` (sha256 of the evaluation that drift compares with), `reward_files`
    (sha256 of the folder of the user's reward functions); empty for none; and `registered`, whether a version was made
    of the same before.
    """
    config = _dump(profile)
    home = os.environ.get("HARDCASE_HOME")  # a folder that does not count as the source's, if it is inside it
    source = [profile.source, source_digest(profile.source, Path(home) if home else None)]
    sections = {name: value for name, value in config.items() if name not in ("seed", "source", "cluster", METRICS)}
    opened = open_store(store)
    files = {name: opened.put_object(data) for name, data in read_reward_files(profile.grpo.rewards).items()}
    rewards = opened.put_object(canonical_json(files)) if files else ""
    identity = {"source": source, "config": sections, "seed": profile.seed, "code": code_digest(), "rewards": rewards}
    fingerprint = bytes_digest(canonical_json(identity))
    ledger = read_ledger(opened, profile.registration.name, keyring())
    champion, reference = ledger.pin(fingerprint)
    check_ledger(opened, ledger, reference, profile.registration)
    return {
        "source": source,
        "fingerprint": fingerprint,
        "champion": champion,
        "reference": reference,
        "reward_files": rewards,
        "registered": any(version.fingerprint == fingerprint for version in ledger.versions.values()),
    }


def check_ledger(store: Store, ledger: Ledger, reference: str, config: RegisterConfig) -> None:
    """Refuse a run that `drift` or `register` would end: what it compares with is lost, or no entry can be retained."""
    champion = [ledger.champion.evaluation] if ledger.champion else []
    for evaluation in filter(None, {reference, *champion}):
        try:
            store.check_object(evaluation)
        except UnavailableError:
            raise
        except HardcaseError as error:
            raise InputError(
                f"model {ledger.name}: an evaluation to compare with is lost: {error}; bring it back, or "
                f"`hardcase rollback {ledger.name}` to a version that is intact"
            ) from error
    if ledger.moves and (days := config.retention_days) is not None:
        with refused():
            retain(store.uri, entry_name(ledger.name, len(ledger.moves)), days)


def plan_retraining(profile: Profile, pinned: Mapping[str, Any], locations: Mapping[str, str]) -> dict[str, Any]:
    """Return the plan of each step by its name, and what Kubernetes is asked for.

    `pinned` is the result of `pin_run`; `locations` holds `store`, `scratch` and `tracking_uri`.
    """
    config = _dump(profile)
    values = {**config, **pinned, "hold_out": profile.sft.hold_out}
    training = max(profile.sft.processes, profile.grpo.processes)
    wanted = {
        "ingest": _divide_source(profile.cluster.ingest_shards),
        "sft": (profile.sft.processes, profile.sft.nodes),
        "grpo": (profile.grpo.processes, profile.grpo.nodes),
        "rollout": _divide(profile.cluster.rollout_shards, training, profile.cluster.gpu_memory),
        "answer": _divide(profile.cluster.answer_shards, training, profile.cluster.gpu_memory),
    }
    plans = _plans(PARAMETERS, config, values, locations, profile.cluster.gpu_memory, wanted)
    for step in ("sft", "grpo"):
        plans[step][METRICS] = profile.metrics
    return plans


def plan_evaluation(
    profile: EvaluationProfile, reference: str, locations: Mapping[str, str], per_node: int = 1
) -> dict[str, Any]:
    """Return the plans of an evaluation, which evaluates all rows without a split.

    `reference` is the sha256 of the evaluation that drift compares with, or empty; `per_node` is the GPUs of a node.
    """
    config = _dump(profile)
    config["ingest"]["eval_share"] = 1.0
    values = {**config, "source": [profile.source, source_digest(profile.source)], "reference": reference}
    gpus = profile.cluster.gpu_memory
    answers = _divide(profile.cluster.answer_shards, per_node, gpus)
    wanted = {"ingest": _divide_source(profile.cluster.ingest_shards), "answer": answers}
    return _plans(("ingest", "answer", "evaluate", "drift"), config, values, locations, gpus, wanted)


def _dump(profile: Profile | EvaluationProfile) -> dict[str, Any]:
    config = profile.model_dump(mode="json", by_alias=True, exclude_none=True)  # KFP takes no null
    if isinstance(profile, Profile) and profile.grpo.depends_on_mining:
        config["mine"].pop("sample", None)
    return config


def _plans(
    steps: Iterable[str],
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    locations: Mapping[str, str],
    gpu: GpuMemory | None,
    wanted: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    code, plans = code_digest(), dict[str, Any]()
    for step in steps:
        section = SECTIONS.get(step, step)
        parameters = {"code": code, "config": config[section], **{name: values[name] for name in PARAMETERS[step]}}
        plan: dict[str, Any] = {
            **locations,
            "parameters": parameters | ({"section": section} if section != step else {}),
        }
        if step in wanted:
            plan |= dict(zip(("shards", "nodes"), wanted[step], strict=True))
        if step in ON_GPUS:
            units, nodes = wanted[step]
            # Where several nodes work, the step only waits for them: their GPUs are the TrainingRuntime's.
            requests = _request(gpu, units if nodes == 1 else 0)
            plans |= {f"{step}_{what}": value for what, value in requests.items()}
            plan["gpus"] = requests["gpus"]
        plans[step] = plan
    return plans


def _divide(shards: int, per_node: int, gpu: GpuMemory | None) -> tuple[int, int]:
    """Return among how many processes and nodes answering is divided."""
    return shards, math.ceil(shards / per_node) if gpu else 1


def _divide_source(shards: int) -> tuple[int, int]:
    """Return among how many shards and nodes reading is divided; one machine reads with all its cores in any case."""
    several = namespace_of() or os.environ.get("HARDCASE_TRAINER") == "local"
    return (shards, shards) if several else (1, 1)


def _request(gpu: GpuMemory | None, gpus: int) -> dict[str, Any]:
    """Return what a pod asks Kubernetes for.

    Kubernetes takes every amount as text; KFP's driver drops a number without a word (kubeflow/pipelines 2.17.0,
    backend/src/v2/driver/resolve.go:818). An empty number of GPUs asks for none.
    """
    if not gpu or not gpus:
        cpus, memory = WITHOUT_GPU
        return {"gpus": "", "cpus": cpus, "memory": memory, "nodes": {"hardcase.io/pool": "steps"}}
    each, gib = PER_GPU[gpu]
    label = {"hardcase.io/gpu-memory": gpu}
    return {"gpus": str(gpus), "cpus": str(gpus * each), "memory": f"{gpus * gib}Gi", "nodes": label}
