import json
import random
from pathlib import Path

import numpy as np
import pytest

from hardcase.data.scenes import (
    AGAINST_ORIGINAL,
    KINDS,
    OCCLUDING,
    VOCABULARY,
    Scene,
    describe_all_aspects,
    draw_scene,
    write_source,
)
from hardcase.store.digest import path_digest
from hardcase.task.sample import ASPECTS, LETTERS


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [draw_scene(rng) for _ in range(400)]


def test_the_truth_is_what_was_drawn(scenes: list[Scene]) -> None:
    for scene in scenes:
        flawed = [letter for letter, view in zip(LETTERS, scene.views[1:], strict=True) if scene.aspect in view.flaws]
        assert scene.truth == flawed


def test_every_kind_of_flaw_occurs_and_rare_ones_are_rare(scenes: list[Scene]) -> None:
    kinds = [view.flaws[scene.aspect] for scene in scenes for view in scene.views[1:] if scene.aspect in view.flaws]
    assert set(kinds) == {kind for tables in KINDS.values() for table in tables for kind in table}
    rare = {kind for _, table in KINDS.values() for kind in table}
    assert 0.02 < np.mean([kind in rare for kind in kinds]) < 0.15


def test_distractors_occur_but_hide_nothing(scenes: list[Scene]) -> None:
    others = [
        kind
        for scene in scenes
        for view in scene.views
        for aspect, kind in view.flaws.items()
        if aspect != scene.aspect
    ]
    assert others
    assert not OCCLUDING & set(others)


def test_hardness_has_a_long_tail(scenes: list[Scene]) -> None:
    hardness = np.array([scene.hardness for scene in scenes])
    assert 0.05 < (hardness >= 0.8).mean() < 0.2
    assert (hardness < 0.35).mean() > 0.3


def test_a_changed_band_is_visible_only_against_the_original() -> None:
    """The same candidate is right for one product and wrong for another."""
    rng = random.Random(1)
    found = [draw_scene(rng, aspect="appearance_deformation", tail=False, distracting=0) for _ in range(60)]
    rebanded = [
        (scene, view) for scene in found for view in scene.views[1:] if view.flaws.get(scene.aspect) == "rebanded"
    ]
    assert rebanded
    for scene, view in rebanded:
        assert view.band != scene.product.band
        assert any(other.views[0].band == view.band for other in found)


def test_the_original_shows_the_product_alone(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert (scene.views[0].light, scene.views[0].shadow, scene.views[0].flaws) == ("none", "none", {})
        corners = [scene.images[0].getpixel(at) for at in ((0, 0), (95, 0), (0, 95), (95, 95))]
        assert len(set(corners)) == 1


def test_reasoning_ends_each_letter_with_its_verdict(scenes: list[Scene]) -> None:
    for scene in scenes:
        words = scene.reasoning.split()
        verdicts = [word for word in words if word in ("ok", "bad")]
        assert [letter for letter, verdict in zip(LETTERS, verdicts, strict=True) if verdict == "bad"] == scene.truth
        assert set(words) <= {*VOCABULARY, *LETTERS, "original", "ok", "bad"}


def test_reasoning_says_whether_what_has_to_agree_agrees(scenes: list[Scene]) -> None:
    """The word before the verdict: a verdict on bands, shadows and arms needs no second look at two pictures."""
    shown = set()
    for scene in scenes:
        words = scene.reasoning.split()
        relations = [words[at - 1] for at, word in enumerate(words) if word in ("ok", "bad")]
        for relation, view in zip(relations, scene.views[1:], strict=True):
            agree = {
                "appearance_deformation": view.band == scene.product.band,
                "physical_shadow": view.shadow == view.light,
                "extension_rationality": "extension_rationality" not in view.flaws,
            }
            if scene.aspect in agree:
                assert relation == ("same" if agree[scene.aspect] else "other")
                shown.add((scene.aspect, relation))
    assert len(shown) == 6


def test_reasoning_starts_with_the_original_where_it_is_needed() -> None:
    scene = draw_scene(random.Random(3), aspect="extension_rationality", flawed=0)
    assert scene.aspect in AGAINST_ORIGINAL
    arm = scene.product.arm
    assert scene.reasoning == " ".join([f"original {arm}", *(f"{letter} {arm} same ok" for letter in LETTERS)])


def test_captions_speak_of_every_aspect(scenes: list[Scene]) -> None:
    assert {len(describe_all_aspects(view).split()) for scene in scenes for view in scene.views} == {6}
    assert len(ASPECTS) == 4


def test_a_source_is_written_like_a_users_and_always_the_same(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_source(tmp_path / name, samples=6, seed=3)
    assert path_digest(tmp_path / "first") == path_digest(tmp_path / "second")
    rows = [json.loads(line) for line in (tmp_path / "first" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert 0 < sum("reasoning" in row for row in rows) < 6
    for row in rows:
        assert all((tmp_path / "first" / path).is_file() for path in (row["original"], *row["candidates"]))


def test_another_seed_draws_other_scenes(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_source(tmp_path / str(seed), samples=2, seed=seed)
    assert path_digest(tmp_path / "1" / "pictures") != path_digest(tmp_path / "2" / "pictures")
