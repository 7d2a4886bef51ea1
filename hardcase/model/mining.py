"""Hard Cases Mining (arXiv 2511.10055, section 4): find what the model gets wrong, and train on it more often.

The paper's threshold and ratio are not public; this is our reading, chosen by ablation (docs/decisions/0007). A case
teaches most when its rollouts earn unlike rewards: a group that earns all the same has no advantage to learn from. So
hard cases get a share of the draws, among them by the variance of their mined rewards, which is p(1 - p) where only
exact answers are rewarded. The rest is drawn alike from all, also what was never solved (a *suspect*, perhaps
mislabelled): leaving it out teaches a model to answer as it already does.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from hardcase.config import GrpoConfig
from hardcase.data.cases import MinedCase
from hardcase.task.reward import dpa
from hardcase.task.sample import LETTERS, Sample

logger = logging.getLogger(__name__)
Weights = npt.NDArray[np.float64]


def _spread(case: MinedCase, truth: frozenset[str], config: GrpoConfig) -> float:
    answered = [None if answer is None else frozenset(answer) & set(LETTERS) for answer in case.answers]
    return float(np.var([dpa(answer, truth, config.reward, config.partial_credit) for answer in answered]))


def compute_weights(cases: Sequence[MinedCase], samples: Sequence[Sample], config: GrpoConfig) -> Weights:
    """How often to draw each case, as chances that add up to 1; `samples` are the cases' own, in order.

    `config.hard_share` of the draws goes to hard cases, among them by the variance of the rewards that they would earn;
    the rest goes to all cases alike, without the suspects if `config.suspects` says so. Where there is no hard case, or
    nothing but suspects, all are drawn alike.
    """
    hard, suspect = np.array([(case.hard, case.suspect) for case in cases], dtype=bool).T
    rest: Weights = np.where(suspect & (not config.suspects and not suspect.all()), 0.0, 1.0)
    rest = rest / rest.sum()
    if not config.hard_share or not hard.any():
        if config.hard_share:
            logger.warning("mining: no case is hard; drawing all alike")
        return rest
    spreads = [_spread(case, sample.truth, config) for case, sample in zip(cases, samples, strict=True)]
    often = np.where(hard, spreads, 0.0)
    weights: Weights = config.hard_share * often / often.sum() + (1 - config.hard_share) * rest
    return weights


class GroupSampler(Sampler[int]):
    """Draws prompts by weight and repeats each one as GRPO wants it.

    Within a batch no prompt is drawn twice, unless fewer than a batch can be drawn at all. The whole order follows from
    the seed and the weights, so that a resumed run skips to where it was.
    """

    def __init__(
        self,
        weights: Callable[[int], Weights],
        *,
        prompts: int,
        generations: int,
        batches: int,
        repeats: int,
        seed: int,
        rounds: int = 1,
        most_draws: int | None = None,
    ) -> None:
        """Plan `batches` batches of `prompts` prompts, each `generations` times, the batch `repeats` times over.

        Args:
            weights: chances of each round of mining, numbered from 0; asked for when the round begins.
            prompts: different prompts a batch.
            generations: G.
            batches: in all.
            repeats: how often each batch is used.
            seed: of the draws.
            rounds: parts of equal length into which the batches fall.
            most_draws: how often one case is drawn at most, while there are enough others for a batch.
        """
        self.weights, self.prompts, self.generations = weights, prompts, generations
        self.batches, self.repeats, self.seed = batches, repeats, seed
        self.rounds, self.most_draws = rounds, most_draws

    def __iter__(self) -> Iterator[int]:
        rng, draws = np.random.default_rng(self.seed), np.zeros(0, dtype=int)
        for number, batches in enumerate(np.array_split(np.arange(self.batches), self.rounds)):
            weights = self.weights(number)
            draws = draws if draws.size else np.zeros(len(weights), dtype=int)
            for _ in batches:
                chances = self._allowed(weights, draws)
                too_few = bool(np.count_nonzero(chances) < self.prompts)
                chosen = rng.choice(len(chances), self.prompts, replace=too_few, p=chances)
                draws[chosen] += 1
                order = [int(index) for index in chosen for _ in range(self.generations)]
                for _ in range(self.repeats):
                    yield from order

    def _allowed(self, weights: Weights, draws: npt.NDArray[np.int_]) -> Weights:
        if self.most_draws is None:
            return weights
        left = np.where(draws < self.most_draws, weights, 0)
        if np.count_nonzero(left) < self.prompts:
            logger.warning("mining: too few cases drawn less than %d times; drawing all again", self.most_draws)
            draws[:] = 0
            return weights
        allowed: Weights = left / left.sum()
        return allowed

    def __len__(self) -> int:
        return self.batches * self.prompts * self.generations * self.repeats
