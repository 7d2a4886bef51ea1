"""Hard Cases Mining (arXiv 2511.10055, section 4): find what the model gets wrong, and train on it more often.

The paper's threshold and ratio are not public; this is our reading, chosen by ablation (docs/decisions). A case teaches
most when its rollouts disagree, so a sample is drawn in proportion to p(1 - p) of its mined success rate p; what was
never solved (a *suspect*, likely mislabelled) is left out.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from hardcase.config import MineConfig
from hardcase.task.answer import format_answer, parse_answer
from hardcase.task.reward import DEFAULT_KIND, dpa

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MinedCase:
    """What k rollouts said of one training sample.

    Attributes:
        id: of the sample.
        answers: each rollout's answer, `AC` or `none`; None where the text was invalid.
        mean_reward: mean DPA of the rollouts.
        exact_rate: share of the rollouts that were exactly right.
        hard: solved less often than the configured share, yet at least once.
        suspect: never solved.
    """

    id: str
    answers: list[str | None]
    mean_reward: float
    exact_rate: float
    hard: bool
    suspect: bool


def judge(id: str, truth: frozenset[str], texts: Sequence[str], config: MineConfig) -> MinedCase:
    """Turn one sample's rollouts into a mined case."""
    parsed = [parse_answer(text) for text in texts]
    exact = float(np.mean([answer == truth for answer in parsed]))
    return MinedCase(
        id=id,
        answers=[None if answer is None else format_answer(answer) for answer in parsed],
        mean_reward=float(np.mean([dpa(answer, truth, DEFAULT_KIND) for answer in parsed])),
        exact_rate=exact,
        hard=0 < exact < config.hard_below,
        suspect=exact == 0,
    )


def mined_weights(exact_rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How often to draw each case, as chances that add up to 1.

    p(1 - p), with p kept below .95 so that what was always solved is still seen now and then; 0 for what was never
    solved. Where no case was ever solved there is nothing to tell them apart by, and all are drawn alike.
    """
    p = np.minimum(exact_rates, 0.95)
    weights = p * (1 - p)
    if not weights.any():
        logger.warning("mining: no case was ever solved; drawing all alike")
        weights = np.ones_like(p)
    chances: npt.NDArray[np.float64] = weights / weights.sum()
    return chances


class GroupSampler(Sampler[int]):
    """Draws prompts by weight and repeats each one as GRPO wants it.

    Within a batch no prompt is drawn twice, unless fewer than a batch can be drawn at all. The whole order follows from
    the seed, so that a resumed run skips to where it was.
    """

    def __init__(
        self,
        weights: npt.NDArray[np.float64],
        *,
        prompts: int,
        generations: int,
        batches: int,
        repeats: int,
        seed: int,
    ) -> None:
        """Plan `batches` batches of `prompts` prompts, each `generations` times, the batch `repeats` times over."""
        self.weights, self.prompts, self.generations = weights, prompts, generations
        self.batches, self.repeats, self.seed = batches, repeats, seed

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(self.seed)
        too_few = bool(np.count_nonzero(self.weights) < self.prompts)
        for _ in range(self.batches):
            chosen = rng.choice(len(self.weights), self.prompts, replace=too_few, p=self.weights)
            order = [int(index) for index in chosen for _ in range(self.generations)]
            for _ in range(self.repeats):
                yield from order

    def __len__(self) -> int:
        return self.batches * self.prompts * self.generations * self.repeats
