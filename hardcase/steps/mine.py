"""mine: which training samples the SFT model solves always, sometimes or never, by its rollouts of each.

Where no weight of GRPO depends on it, only `mine.sample` of them are mined, for the report and its warnings.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardcase.config import MineConfig
from hardcase.data.cases import draw_mined, judge, write_cases
from hardcase.data.completions import read_completions
from hardcase.data.snapshot import Snapshot, is_held_out
from hardcase.runtime.running import running
from hardcase.stats.learning import list_warnings

logger = logging.getLogger(__name__)


def execute(plan: Mapping[str, Any], rollouts: str) -> str:
    """Judge the rollouts of an attestation, and return the sha256 of the step's own."""
    with running("mine", plan, {"snapshot": rollouts, "rollouts": rollouts}) as work:
        config = MineConfig.model_validate(work.config)
        hold_out = plan["parameters"]["hold_out"]
        run(work.input("snapshot"), plan["store"], work.input("rollouts"), config, work.outputs / "mined", hold_out)
    return work.attestation


def run(snapshot: Path, store: str, rollouts: Path, config: MineConfig, mined: Path, hold_out: float = 0.0) -> None:
    """Write `mined.parquet`, one row for each mined training sample."""
    rows = Snapshot.open(snapshot, store).read_labels("train")
    labels = [row for row in rows if not is_held_out(row["group"], hold_out)]
    labels = [labels[index] for index in draw_mined(len(labels), config.sample)]
    answered = zip(labels, read_completions([rollouts], [row["id"] for row in labels]), strict=True)
    cases = [judge(row["id"], frozenset(row["answer"]), answers, config.hard_below) for row, answers in answered]
    write_cases(cases, mined)
    for warning in list_warnings(cases):
        logger.warning(warning)
