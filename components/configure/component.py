"""The KFP components of configure, and of its like for an evaluation alone."""

from typing import Any, NamedTuple

from kfp import dsl

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def configure(profile: str, source: str, seed: int, settings: dict[str, Any]) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    place=dict,
    source=str,
    source_digest=str,
    seed=int,
    reference=str,
    launch=dict,
    start=dict,
    ingest=dict,
    validate=dict,
    sft=dict,
    mine=dict,
    grpo=dict,
    evaluate=dict,
    drift=dict,
    register=dict,
    rollout_shards=dict,
    answer_shards=dict,
    sft_gpus=str,
    sft_cpus=str,
    sft_memory=str,
    sft_nodes=dict,
    rollout_gpus=str,
    rollout_cpus=str,
    rollout_memory=str,
    rollout_nodes=dict,
    grpo_gpus=str,
    grpo_cpus=str,
    grpo_memory=str,
    grpo_nodes=dict,
    answer_gpus=str,
    answer_cpus=str,
    answer_memory=str,
    answer_nodes=dict,
):
    """Find what every step is given: the profile, changed by what was asked for, and today's champion."""
    from collections import namedtuple

    from components.configure.step import machines, plan
    from components.materials import keyring
    from components.running import noted, place_of
    from hardcase.config import load_profile

    with noted("configure"):
        chosen = {**settings, "seed": int(seed), **({"source": source} if source else {})}
        loaded = load_profile(profile, chosen)
        found = {**plan(loaded, *place_of(), keyring()), **machines(loaded)}
    return namedtuple("Plan", found)(**found)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def fetch(model: str, profile: str, source: str, settings: dict[str, Any]) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    model=str,
    place=dict,
    launch=dict,
    reference=str,
    source=str,
    source_digest=str,
    seed=int,
    ingest=dict,
    evaluate=dict,
    drift=dict,
    answer_shards=dict,
    answer_gpus=str,
    answer_cpus=str,
    answer_memory=str,
    answer_nodes=dict,
):
    """Fetch a registered version, and find what the steps that score it are given."""
    from collections import namedtuple

    from components.configure.step import evaluation_plan, fetched_version
    from components.materials import keyring
    from components.running import place_of, running
    from hardcase.audit.code import code_digest
    from hardcase.config import load_profile

    store, tracking_uri, scratch = place_of()
    place = {"store": store, "scratch": scratch, "code": code_digest()}
    registered: dict[str, str] = {}
    with running("fetch", place, {}, registered, model=model) as work:
        loaded = load_profile(profile, {**settings, "source": source})
        version = fetched_version(store, keyring(), model, work.output("model"))
        registered["statement"] = version.statement
        plan = evaluation_plan(loaded, model, version, store, tracking_uri, scratch)
    found = {"model": work.attestation, **plan}
    return namedtuple("Plan", found)(**found)
