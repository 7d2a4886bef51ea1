"""Signs that training taught the model little, which no error reports: cut completions, and GRPO without effect."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hardcase.data.cases import MinedCase, count_cases
from hardcase.data.scores import PARTS
from hardcase.task.score import TOO_FEW_GROUPS

MOST_CUT: Final = 0.05  # of all completions; a cut one has no answer, so it counts as wrong
LEAST_SPREAD: Final = 0.05  # of all groups; one with equal rewards has no advantage to learn from


def read_log(source: Path | bytes) -> list[dict[str, Any]]:
    """Read the log of a training, one entry a logged step."""
    content = source.read_bytes() if isinstance(source, Path) else source
    return [json.loads(line) for line in content.splitlines()]


def list_warnings(
    cases: Sequence[MinedCase] = (), log: Sequence[Mapping[str, Any]] = (), scores: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what people should know before they trust a training, as sentences.

    Args:
        cases: mined cases.
        log: entries of the training log. Those of GRPO have TRL's `completions/clipped_ratio` and
            `frac_reward_zero_std` (trl 1.16.0, trainer/grpo_trainer.py:2304 and 2830), the last one `weights_changed`.
        scores: content of `scores.json`.
    """
    return [*_warn_of_chance(scores or {}), *_warn_of_cuts(cases, log, scores or {}), *_warn_of_grpo(log)]


def is_above_chance(scores: Mapping[str, Any]) -> bool:
    """Return whether the interval of the final model's overall score is above that of guessing."""
    chance = scores["chance"]["intervals"]["overall"]
    return bool(chance) and _exceeds(scores["final"], chance[1])


def _exceeds(score: Mapping[str, Any], level: float) -> bool:
    bounds = score["intervals"]["overall"]
    return bool(bounds) and bounds[0] > level


def describe_against_chance(scores: Mapping[str, Any]) -> str:
    """Return a sentence that compares the final model's overall score with guessing."""
    final, chance = (describe_overall(scores[part]) for part in ("final", "chance"))
    return f"overall {final} is {'' if is_above_chance(scores) else 'not shown to be '}above chance, {chance}"


def describe_overall(score: Mapping[str, Any]) -> str:
    """Return the overall score with its interval, if enough groups carry one."""
    bounds = score["intervals"]["overall"]
    return f"{score['overall']:.1f} [{'{:.1f}, {:.1f}'.format(*bounds) if bounds else TOO_FEW_GROUPS}]"


def _warn_of_chance(scores: Mapping[str, Any]) -> Iterator[str]:
    scored = all("intervals" in (scores.get(part) or {}) for part in ("final", "chance"))
    if scored and not is_above_chance(scores):
        yield f"evaluate: {describe_against_chance(scores)}"
    elif scored and (constant := scores.get("constant")) and not _exceeds(scores["final"], constant["overall"]):
        yield (
            f"evaluate: overall {describe_overall(scores['final'])} is not shown to be above that of always answering "
            f"{constant['answer']}, {constant['overall']:.1f}"
        )


def _warn_of_cuts(
    cases: Sequence[MinedCase], log: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> Iterator[str]:
    mined = count_cases(cases)
    shares = [("mine", "rollouts", mined["cut"] / max(1, mined["rollouts"]))]
    shares.append(("grpo", "completions", _average(log, "completions/clipped_ratio") or 0))
    for part in reversed(PARTS):
        shares.append(("evaluate", f"answers of the {PARTS[part]} model", (scores.get(part) or {}).get("cut") or 0))
    for step, what, share in shares:
        if share > MOST_CUT:
            yield (
                f"{step}: {share:.0%} of the {what} were cut at {step}.max_new_tokens and count as wrong; raise it, or "
                "train SFT on shorter reasoning"
            )


def _warn_of_grpo(log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    equal = _average(log, "frac_reward_zero_std")
    if equal is not None and 1 - equal < LEAST_SPREAD:
        yield (
            f"grpo: {equal:.0%} of the groups had equal rewards and taught nothing; train SFT longer, raise "
            "grpo.temperature or grpo.generations, or choose a grpo.reward with partial credit"
        )
    if any(entry.get("weights_changed") is False for entry in log):
        yield "grpo: the final weights equal those of the SFT model; GRPO changed nothing"


def _average(log: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in log if key in entry]
    return float(np.mean(values)) if values else None
