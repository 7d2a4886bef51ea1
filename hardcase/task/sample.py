"""What is judged: one original image, four candidates, one aspect, and the letters that show a flaw in it.

Source: arXiv 2511.10055, section 3 (the task and its four aspects).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LETTERS: Final = ("A", "B", "C", "D")
ASPECTS: Final = ("appearance_deformation", "physical_shadow", "placement_layout", "extension_rationality")


@dataclass(frozen=True, slots=True)
class Sample:
    """One question with its truth.

    Attributes:
        id: unique name in its snapshot.
        aspect: one of `ASPECTS`.
        truth: the letters that show a flaw in `aspect`; empty when none does.
        reasoning: the annotated chain of thought, or None.
        group: samples of one group never part between splits.
        images: five encoded images (JPEG, PNG or WebP bytes): the original, then A to D. They may be read when used.
        sizes: width and height of each image, where they are known.
    """

    id: str
    aspect: str
    truth: frozenset[str]
    reasoning: str | None
    group: str
    images: Sequence[bytes]
    sizes: tuple[tuple[int, int], ...] = ()
