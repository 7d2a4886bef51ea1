"""Print what each definition of partial credit rewards, over all 16×16 pairs of answer and truth, as a Markdown table.

The table has the four things that decided `docs/decisions/0001-dpa.md`: whether each honest step towards the truth is
rewarded, what constant answers earn, what guessing earns, and how far a model that maximises the reward drifts from
naming exactly the letters it believes in. Everything is exact; nothing is sampled.

    python benchmarks/dpa_table.py
"""

from itertools import product

import numpy as np
import numpy.typing as npt

from hardcase.config import RewardKind
from hardcase.task.answer import format_answer
from hardcase.task.reward import KINDS, dpa
from hardcase.task.sample import LETTERS
from hardcase.task.score import SUBSETS

PRIORS = (0.45, 0.6)
FLAGGED = np.array([[letter in subset for letter in LETTERS] for subset in SUBSETS])
# A model's belief in each letter, independent and spread evenly over (0, 1); no belief is exactly one half.
BELIEFS = np.array(list(product(np.arange(0.05, 1, 0.1), repeat=len(LETTERS))))


def count_honest_steps(kind: RewardKind) -> tuple[int, int, int]:
    """Count how often one more right or one fewer wrong letter raises, keeps and lowers the reward."""
    changes = np.array(
        [
            dpa(answer ^ {letter}, truth, kind) - dpa(answer, truth, kind)
            for answer in SUBSETS
            for truth in SUBSETS
            for letter in sorted(answer ^ truth)
        ]
    )
    return int((changes > 0).sum()), int((changes == 0).sum()), int((changes < 0).sum())


def truth_chances(belief: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probability of each of the sixteen truths where each letter is flawed with its own probability."""
    letters = np.where(FLAGGED, belief[..., None, :], 1 - belief[..., None, :])
    chances: npt.NDArray[np.float64] = letters.prod(axis=-1)
    return chances


def measure_kind(kind: RewardKind) -> dict[str, str]:
    """Return everything that is measured about one definition."""
    rewards = np.array([[dpa(answer, truth, kind) for truth in SUBSETS] for answer in SUBSETS])
    raised, equal, lowered = count_honest_steps(kind)
    cells = {
        "honest steps raised, kept, lowered": f"{raised}, {equal}, {lowered}",
        "guessing, truths equally likely": f"{rewards.mean():.3f}",
    }
    mixes = {"truths equally likely": np.full(len(SUBSETS), 1 / len(SUBSETS))}
    mixes |= {f"letters flawed with {prior}": truth_chances(np.full(len(LETTERS), prior)) for prior in PRIORS}
    for name, weights in mixes.items():
        earned = (rewards @ weights).round(12)  # equal constants tie, and the shortest is shown
        cells[f"best constant, {name}"] = f"{earned.max():.3f} ({format_answer(SUBSETS[earned.argmax()])})"
        cells[f"always ABCD, {name}"] = f"{earned[-1]:.3f}"
    truths = truth_chances(BELIEFS)
    best, believed = (truths @ rewards.T).round(12).argmax(axis=1), BELIEFS > 0.5
    cells["exact match of the answer that maximises it"] = f"{truths[np.arange(len(best)), best].mean():.3f}"
    cells["its letters believed but not named"] = f"{(believed & ~FLAGGED[best]).mean():.3f}"
    cells["its letters named but not believed"] = f"{(~believed & FLAGGED[best]).mean():.3f}"
    return cells


def main() -> None:
    """Print the table."""
    columns = [measure_kind(kind) for kind in KINDS]
    rows = [["", *KINDS], ["---"] * (len(KINDS) + 1)]
    rows += [[name, *(cells[name] for cells in columns)] for name in columns[0]]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
