"""The same question with the candidates in another order, and what an answer to it says of the original order.

A model that sees a flaw sees it whatever letter the candidate has. The share of orders in which it flags a candidate is
therefore a score (docs/decisions/0020).
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final, overload

from hardcase.task.sample import LETTERS, Sample

ORDERS: Final = len(LETTERS)


class TurnedImages(Sequence[bytes]):
    """The five images of a sample with its candidates in another order, read when they are used."""

    def __init__(self, images: Sequence[bytes], order: int) -> None:
        candidates = [*range(1, 1 + ORDERS)]
        self._images, self._places = images, [0, *candidates[order:], *candidates[:order]]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(at, slice):
            return tuple(self._images[place] for place in self._places[at])
        image: bytes = self._images[self._places[at]]
        return image


def turn_sample(sample: Sample, order: int) -> Sample:
    """Return a sample whose candidate A is the one with letter number `order`, 0 to 3, B the next, and so on."""
    if not order:
        return sample
    truth = frozenset(LETTERS[(LETTERS.index(letter) - order) % ORDERS] for letter in sample.truth)
    first, *others = sample.sizes or [()]
    sizes = (first, *others[order:], *others[:order]) if sample.sizes else ()
    return replace(sample, truth=truth, images=TurnedImages(sample.images, order), sizes=sizes)


def turn_back(answer: AbstractSet[str], order: int) -> frozenset[str]:
    """Return the letters of the original order that an answer in the order of that number flags."""
    return frozenset(LETTERS[(LETTERS.index(letter) + order) % ORDERS] for letter in answer)


def share_flags(answers: Sequence[AbstractSet[str] | None]) -> dict[str, float]:
    """Return, for each letter, the share of the valid answers that flag it; 0 where none is valid.

    `answers` are those of the orders 0, 1, …, each in the letters of its own order, None for an invalid one.
    """
    valid = [turn_back(answer, order) for order, answer in enumerate(answers) if answer is not None]
    return {letter: sum(letter in answer for answer in valid) / max(1, len(valid)) for letter in LETTERS}
