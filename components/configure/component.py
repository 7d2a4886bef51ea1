"""The KFP faces of configure, and of its like for an evaluation alone."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Model, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def configure(profile: str, source: str, seed: int, settings: dict[str, Any]) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    source=str,
    source_digest=str,
    store=str,
    tracking_uri=str,
    scratch=str,
    code=str,
    seed=int,
    champion=str,
    reference=str,
    fingerprint=str,
    facts=dict,
    rollout_shards=list[str],
    answer_shards=list[str],
    ingest=dict,
    validate=dict,
    model=dict,
    sft=dict,
    mine=dict,
    grpo=dict,
    evaluate=dict,
    drift=dict,
    register=dict,
    nodes=dict,
    train_gpus=int,
    train_cpus=str,
    train_memory=str,
    shard_gpus=int,
    shard_cpus=str,
    shard_memory=str,
):
    """Find what every step is given: the profile, changed by what was asked for, and today's champion."""
    from collections import namedtuple

    from components.configure.step import machines, plan
    from components.running import keyring, noted, place_of
    from hardcase.config import load_profile

    with noted("configure"):
        chosen = {**settings, "seed": int(seed), **({"source": source} if source else {})}
        loaded = load_profile(profile, chosen)
        found = {**plan(loaded, profile, *place_of(), keyring()), **machines(loaded)}
    return namedtuple("Plan", found)(**found)


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def fetch(model: str, profile: str, source: str, settings: dict[str, Any], fetched: Output[Model]) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    version=str,
    reference=str,
    source=str,
    source_digest=str,
    store=str,
    tracking_uri=str,
    scratch=str,
    code=str,
    seed=int,
    answer_shards=list[str],
    ingest=dict,
    evaluate=dict,
    drift=dict,
    nodes=dict,
    shard_gpus=int,
    shard_cpus=str,
    shard_memory=str,
):
    """Fetch a registered version, and find what the steps that score it are given."""
    from collections import namedtuple
    from pathlib import Path

    from components.configure.step import evaluation_plan, fetched_version
    from components.running import keyring, place_of, running
    from hardcase.config import load_profile

    store, tracking_uri, scratch = place_of()
    registered: dict[str, str] = {}
    with running("fetch", scratch, {}, {"fetched": fetched}, registered, model=model):
        loaded = load_profile(profile, {**settings, "source": source})
        version = fetched_version(store, keyring(), model, Path(fetched.path))
        registered["statement"] = version.statement
        found = evaluation_plan(loaded, model, version, store, tracking_uri, scratch)
    return namedtuple("Plan", found)(**found)
