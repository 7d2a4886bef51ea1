"""The warm-up of a model built from nothing: say what one picture shows, from plain to subtle, then what five show.

Without it a tiny model finds no reason to look at its pictures in the time there is
(docs/decisions/0004-tiny-recipe.md). A checkpoint from the hub has learned to see already and skips it. Pictures are
procedural, drawn when they are asked for, and share no seed with any data.
"""

import random
from functools import lru_cache
from typing import Any, Final

from datasets import Dataset

from hardcase.data.scenes import Scene, describe_all_aspects, draw_scene
from hardcase.model.rows import build_assistant_turn, build_lazy_dataset
from hardcase.task.answer import THINK, THINK_END
from hardcase.task.prompt import build_messages
from hardcase.task.sample import LETTERS

PICTURES_A_SCENE: Final = 5
RARE_AT_END: Final = 0.6  # share of scenes of the long tail at a curriculum's end; no annotation shows these kinds
NAMES: Final = ("original", *LETTERS)


def _scene(rng: random.Random, progress: float) -> Scene:
    """A scene of the curriculum: plain to see at first, ever harder ones and the rare kinds later."""
    return draw_scene(
        rng,
        flawed=0.5,
        distracting=0.5,
        tail=rng.random() < RARE_AT_END * progress,
        ceiling=0.8 * min(1.0, 0.3 + 1.2 * progress),
    )


def build_warm_up_rows(count: int, seed: int) -> Dataset:
    """`count` captioned single pictures in the order of a curriculum: read them in sequence, not shuffled."""

    @lru_cache(maxsize=64)
    def scene(index: int) -> Scene:
        return _scene(random.Random(f"warm-up {seed} {index}"), index * PICTURES_A_SCENE / count)

    def row(index: int) -> dict[str, Any]:
        which, picture = divmod(index, PICTURES_A_SCENE)
        drawn = scene(which)
        name = ("original", *random.Random(f"names {seed} {which}").sample(LETTERS, 4))[picture]
        return {
            "prompt": build_caption_prompt(name),
            "completion": build_assistant_turn(format_caption(name, describe_all_aspects(drawn.views[picture]))),
            "images": [drawn.images[picture]],
        }

    return build_lazy_dataset(count, row)


def build_reading_rows(count: int, seed: int) -> Dataset:
    """`count` rows in the form of the task that say what five pictures show and judge nothing; a curriculum too."""

    def row(index: int) -> dict[str, Any]:
        drawn = _scene(random.Random(f"reading {seed} {index}"), index / count)
        return {
            "prompt": build_messages(drawn.aspect),
            "completion": build_assistant_turn(f"{THINK}{drawn.reading}{THINK_END}"),
            "images": list(drawn.images),
        }

    return build_lazy_dataset(count, row)


def build_caption_prompt(name: str) -> list[dict[str, Any]]:
    """The user's turn that shows one picture by its name in the task's prompt."""
    title = "original image" if name == "original" else f"image {name}"
    return [{"role": "user", "content": [{"type": "text", "text": title}, {"type": "image"}]}]


def format_caption(name: str, seen: str) -> str:
    """The answer to `caption_prompt`."""
    return f"{THINK}{name} {seen}{THINK_END}"
