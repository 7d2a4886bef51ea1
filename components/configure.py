"""The KFP component of configure."""

from typing import Any, NamedTuple

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


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

    from hardcase.config import load_profile
    from hardcase.runtime.materials import keyring
    from hardcase.runtime.running import noted, place_of
    from hardcase.steps.configure import machines, plan

    with noted("configure"):
        chosen = {**settings, "seed": int(seed), **({"source": source} if source else {})}
        loaded = load_profile(profile, chosen)
        found = {**plan(loaded, *place_of(), keyring()), **machines(loaded)}
    return namedtuple("Plan", found)(**found)
