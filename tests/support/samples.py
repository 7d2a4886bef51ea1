"""Samples that stand for what the steps of a run hand on: the pipeline as it was before, and as it is."""

import json
from pathlib import Path
from typing import Any

from hardcase.config import load_profile
from hardcase.steps.configure import plan_retraining
from tests.support.workflow import digest

RECORDINGS = Path(__file__).parents[1] / "recordings"
BEFORE = RECORDINGS / "retraining-before.yaml.gz"  # with a nested pipeline, loops, and links in artifacts' metadata
PIPELINES = Path(__file__).parents[2] / "hardcase" / "compiled"
STORE = "s3://hardcase-artifacts-eu/hardcase"
TRACKING = "http://mlflow.mlflow.svc.cluster.local:5000"


def values_before(shards: int = 1) -> dict[str, Any]:
    """Return what `configure` of the profile smoke gave when the pipeline was that of `BEFORE`."""
    values: dict[str, Any] = json.loads((RECORDINGS / "retraining-before-values.json").read_text(encoding="utf-8"))
    divided = [f"{shard}/{shards}" for shard in range(1, shards + 1)]
    return {**values, "rollout_shards": divided, "answer_shards": divided}


def values_now(profile: str = "internvl3-2b", shards: int = 1) -> dict[str, Any]:
    """Return what `configure` and `fetch` give for a profile; digests are as long and as random as real ones."""
    loaded = load_profile(profile, {"cluster.rollout_shards": shards, "cluster.answer_shards": shards})
    pinned: dict[str, Any] = {name: digest(name) for name in ("fingerprint", "champion", "reference", "reward_files")}
    pinned["source"] = ["s3://hardcase-datasets-eu/scenes/2026-11", digest("source")]
    plans = plan_retraining(loaded, pinned, {"store": STORE, "scratch": "/scratch", "tracking_uri": TRACKING})
    return {**plans, **{name: digest(name) for name in ("Output", "model")}}  # attestations
