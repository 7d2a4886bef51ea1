"""Build the warm-up data of a model with random initial weights: describe one image, then five, from easy to hard.

Without warm-up a tiny model does not learn to use its images in the available steps
(docs/decisions/0004-tiny-recipe.md). A checkpoint from the hub is trained on images already and skips it. Images are
procedural, drawn on demand, and share no seed with any data.
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

IMAGES_A_SCENE: Final = 5
RARE_AT_END: Final = 0.6  # share of long-tail scenes at the end of a curriculum; no annotated sample shows these kinds
NAMES: Final = ("original", *LETTERS)


def _draw_curriculum_scene(rng: random.Random, progress: float) -> Scene:
    """Draw a scene of the curriculum: obvious flaws first, then harder ones and rare kinds."""
    return draw_scene(
        rng,
        flawed=0.5,
        distracting=0.5,
        tail=rng.random() < RARE_AT_END * progress,
        ceiling=0.8 * min(1.0, 0.3 + 1.2 * progress),
    )


def build_warm_up_rows(count: int, seed: int) -> Dataset:
    """Build `count` captioned single images in the order of a curriculum, to be read in sequence."""

    @lru_cache(maxsize=64)
    def draw(index: int) -> Scene:
        return _draw_curriculum_scene(random.Random(f"warm-up {seed} {index}"), index * IMAGES_A_SCENE / count)

    def build_row(index: int) -> dict[str, Any]:
        scene_index, image_index = divmod(index, IMAGES_A_SCENE)
        scene = draw(scene_index)
        name = ("original", *random.Random(f"names {seed} {scene_index}").sample(LETTERS, 4))[image_index]
        title = "original image" if name == "original" else f"image {name}"  # as in the task's prompt
        observations = describe_all_aspects(scene.views[image_index])
        return {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": title}, {"type": "image"}]}],
            "completion": build_assistant_turn(f"{THINK}{name} {observations}{THINK_END}"),
            "images": [scene.images[image_index]],
        }

    return build_lazy_dataset(count, build_row)


def build_reading_rows(count: int, seed: int) -> Dataset:
    """Build `count` rows of the task's form that describe five images without verdicts, as a curriculum."""

    def build_row(index: int) -> dict[str, Any]:
        scene = _draw_curriculum_scene(random.Random(f"reading {seed} {index}"), index / count)
        return {
            "prompt": build_messages(scene.aspect),
            "completion": build_assistant_turn(f"{THINK}{scene.reading}{THINK_END}"),
            "images": list(scene.images),
        }

    return build_lazy_dataset(count, build_row)
