"""Plans of a retraining, without a store or a source."""

from typing import Any

from hardcase.config import load_profile
from hardcase.steps.configure import plan_retraining


def machines(profile: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a profile plans, and what Kubernetes is asked for."""
    pinned = {"source": ["", ""], "fingerprint": "", "champion": "", "reference": "", "reward_files": ""}
    return plan_retraining(load_profile(profile, settings or {}), pinned, {"store": "s3://bucket"})
