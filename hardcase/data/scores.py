"""Scores of an evaluation (`scores.json`): of chance, of the SFT model and of the final model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hardcase.errors import InputError

# Whose scores the file holds, with their labels, in the order in which they are shown; those of `sft` may be null.
PARTS: Final = {"chance": "chance", "sft": "SFT", "final": "final"}


def write_scores(scores: Mapping[str, Any], path: Path) -> None:
    """Write samples, groups, reward, gain, and chance, sft and final as `hardcase.task.score` returns them."""
    path.write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_scores(data: bytes) -> dict[str, Any]:
    """Read the content of `scores.json`, or raise `InputError`."""
    try:
        scores = json.loads(data)
    except ValueError as error:
        raise InputError(f"scores: not JSON ({error}); run the step evaluate again") from error
    if not isinstance(scores, dict):
        raise InputError("scores: not a JSON object; run the step evaluate again")
    return upgrade_scores(scores)


def upgrade_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores under today's keys: records of before format 2 call the final model `grpo`."""
    return {"final" if key == "grpo" else key: score for key, score in scores.items()}
