"""The KFP component of fetch."""

from typing import Any, NamedTuple

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


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

    from hardcase.config import load_profile
    from hardcase.provenance.code import code_digest
    from hardcase.runtime.materials import keyring
    from hardcase.runtime.running import place_of, running
    from hardcase.steps.configure import evaluation_plan, fetched_version

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
