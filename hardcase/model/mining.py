"""Hard Cases Mining (arXiv 2511.10055, section 4): find what the model gets wrong, and train on it more focus.

The paper's threshold and ratio are not public. This is our reading, chosen by ablation (docs/decisions/0007). A case
teaches most when its rollouts earn different rewards, because a group with equal rewards has no advantage to learn
from. So hard cases get a share of the draws, divided among them by the variance of their mined rewards, which is
p(1 - p) where only exact answers are rewarded. The rest is drawn uniformly from all cases, also from those never solved
(*suspects*, perhaps mislabelled), because without them the model learns to answer as it already does.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from hardcase.config import GrpoConfig
from hardcase.data.cases import MinedCase
from hardcase.task.reward import dpa
from hardcase.task.sample import LETTERS, Sample

logger = logging.getLogger(__name__)
Weights = npt.NDArray[np.float64]


def _compute_variance(case: MinedCase, truth: frozenset[str], config: GrpoConfig) -> float:
    answers = [None if answer is None else frozenset(answer) & set(LETTERS) for answer in case.answers]
    return float(np.var([dpa(answer, truth, config.reward, config.partial_credit) for answer in answers]))


def compute_weights(cases: Sequence[MinedCase], samples: Sequence[Sample], config: GrpoConfig) -> Weights:
    """Return the probability of drawing each case; `samples` are the cases' samples in the same order.

    `config.hard_share` of the draws goes to hard cases, divided by the variance of the rewards that their answers earn.
    The rest is uniform over all cases, without the suspects if `config.suspects` is false. Without hard cases, or with
    suspects only, all draws are uniform. Where no weight depends on mining, `cases` are not read.
    """
    if not config.depends_on_mining:
        return np.full(len(samples), 1 / len(samples))
    hard, suspect = np.array([(case.hard, case.suspect) for case in cases], dtype=bool).T
    rest: Weights = np.where(suspect & (not config.suspects and not suspect.all()), 0.0, 1.0)
    rest = rest / rest.sum()
    if not config.hard_share or not hard.any():
        if config.hard_share:
            logger.warning("mining: no case is hard; drawing uniformly")
        return rest
    variances = [_compute_variance(case, sample.truth, config) for case, sample in zip(cases, samples, strict=True)]
    focus = np.where(hard, variances, 0.0)
    weights: Weights = config.hard_share * focus / focus.sum() + (1 - config.hard_share) * rest
    return weights


@dataclass(eq=False)
class GroupSampler(Sampler[int]):
    """Draw `batches` batches of `prompts` prompts by weight, each `generations` times, the batch `repeats` times over.

    Within a batch no prompt is drawn twice, unless too few can be drawn. The order follows from the seed and the
    weights, so that a resumed run can skip to where it stopped.
    """

    weights: Callable[[int], Weights]  # called at the start of each round, numbered from 0
    _: KW_ONLY
    prompts: int
    generations: int
    batches: int
    repeats: int
    seed: int
    rounds: int = 1  # equal parts of the batches
    most_draws: int | None = None  # of one case, while there are enough others for a batch

    def __iter__(self) -> Iterator[int]:
        rng, draws = np.random.default_rng(self.seed), np.zeros(0, dtype=int)
        for number, batches in enumerate(np.array_split(np.arange(self.batches), self.rounds)):
            weights = self.weights(number)
            draws = draws if draws.size else np.zeros(len(weights), dtype=int)
            for _ in batches:
                allowed = self._limit_draws(weights, draws)
                too_few = bool(np.count_nonzero(allowed) < self.prompts)
                chosen = rng.choice(len(allowed), self.prompts, replace=too_few, p=allowed)
                draws[chosen] += 1
                order = [int(index) for index in chosen for _ in range(self.generations)]
                for _ in range(self.repeats):
                    yield from order

    def _limit_draws(self, weights: Weights, draws: npt.NDArray[np.int_]) -> Weights:
        if self.most_draws is None:
            return weights
        remaining = np.where(draws < self.most_draws, weights, 0)
        if np.count_nonzero(remaining) < self.prompts:
            logger.warning("mining: too few cases drawn less than %d times; starting a new count", self.most_draws)
            draws[:] = 0
            return weights
        allowed: Weights = remaining / remaining.sum()
        return allowed

    def __len__(self) -> int:
        return self.batches * self.prompts * self.generations * self.repeats
