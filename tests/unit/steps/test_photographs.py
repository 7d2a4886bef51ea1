"""ingest on real photographs, those that scikit-learn and matplotlib ship, with the edits that go wrong in practice."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import imagehash
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from hardcase.config import IngestConfig
from hardcase.data.images import decode_image
from hardcase.data.snapshot import Snapshot
from hardcase.steps import ingest as step
from hardcase.task.sample import ASPECTS, LETTERS

SIDE = 200


def photographs() -> dict[str, Image.Image]:
    shipped = files("sklearn.datasets") / "images"
    found = {}
    for name in ("china.jpg", "flower.jpg"):
        with (shipped / name).open("rb") as file:
            found[name] = Image.open(file).convert("RGB")
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        found["grace_hopper.jpg"] = Image.open(file).convert("RGB")
    return found


def warped(image: Image.Image) -> Image.Image:
    """appearance_deformation: sheared as by a bad warp."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0.25, -25, 0.05, 1, 0), Image.Resampling.BICUBIC)


def relit(image: Image.Image) -> Image.Image:
    """physical_shadow: the dark parts lifted, as when a shadow is removed."""
    pixels = np.asarray(image, float)
    shade = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(9)), float)[..., None]
    return Image.fromarray((pixels * np.where(shade < 90, 1.8, 1)).clip(0, 255).astype(np.uint8))


def pasted(image: Image.Image) -> Image.Image:
    """placement_layout: a piece cut out and put where it does not belong."""
    out = image.copy()
    out.paste(image.crop((60, 60, 140, 140)), (115, 5))
    return out


def extended(image: Image.Image) -> Image.Image:
    """extension_rationality: a limb that nothing carries."""
    out = image.copy()
    ImageDraw.Draw(out).line(((100, 100), (160, 40), (190, 50)), fill=image.getpixel((100, 100)), width=14)
    return out


FLAWS: dict[str, Callable[[Image.Image], Image.Image]] = dict(
    zip(ASPECTS, (warped, relit, pasted, extended), strict=True)
)
WRITERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (".jpg", {"quality": 88}),
    (".JPEG", {"quality": 70, "progressive": True}),
    (".png", {}),
    (".webp", {"quality": 80}),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops as originals, one aspect each; half of the candidates edited; every writer; some turned as phones do."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    rows = []
    for name, photograph in photographs().items():
        for number in range(8):
            left, top = (int(rng.integers(0, side - SIDE)) for side in photograph.size)
            original = photograph.crop((left, top, left + SIDE, top + SIDE))
            aspect, truth, paths = ASPECTS[number % 4], [], []
            for place, letter in enumerate(("o", *LETTERS)):
                image = original
                if letter in LETTERS:
                    image = ImageEnhance.Brightness(original).enhance(float(rng.uniform(0.9, 1.1)))
                    if rng.random() < 0.5:
                        image, truth = FLAWS[aspect](image), [*truth, letter]
                suffix, options = WRITERS[(number + place) % len(WRITERS)]
                path = folder / name.removesuffix(".jpg") / f"{number} {letter}{suffix}"
                path.parent.mkdir(exist_ok=True)
                exif = Image.Exif()
                if suffix == ".jpg":  # stored lying, marked to be turned upright
                    exif[0x0112] = 6
                    image = image.transpose(Image.Transpose.ROTATE_90)
                image.save(path, exif=exif, **options)
                paths.append(path.relative_to(folder).as_posix())
            rows.append(
                {
                    "id": f"{name}/{number}",
                    "aspect": aspect,
                    "original": paths[0],
                    "candidates": paths[1:],
                    "answer": truth,
                    "group": name,
                    "photographer": "shipped",
                }
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ingested(source: Path, out: Path, **config: Any) -> Snapshot:
    result = step.run(str(source), str(out / "store"), IngestConfig(**config), out / "m.json", out / "q.parquet", out)
    assert (result.accepted, result.quarantined) == (24, {})
    return Snapshot.open(out / "m.json", str(out / "store"))


def test_real_photographs_come_in_whole_and_upright(source: Path, tmp_path: Path) -> None:
    snapshot = ingested(source, tmp_path)
    samples = [sample for split in ("train", "eval") for sample in snapshot.open_samples(split)]
    assert {sample.aspect for sample in samples} == set(ASPECTS)
    near = []
    for sample in samples:
        original, *candidates = (decode_image(data) for data in sample.images)
        assert original.size == (SIDE, SIDE)
        for letter, candidate in zip(LETTERS, candidates, strict=True):
            if letter not in sample.truth:
                near.append(imagehash.phash(original) - imagehash.phash(candidate))
    assert max(near) <= 14  # a candidate still lying on its side is some 30 bits away
    formats = {image["format"] for row in snapshot.read_table()["images"].to_pylist() for image in row}
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert snapshot.manifest["unknown_keys"] == ["photographer"]


def test_crops_of_one_photograph_never_part(source: Path, tmp_path: Path) -> None:
    snapshot = ingested(source, tmp_path, eval_share=0.4)
    table = snapshot.read_table()
    sides = set(zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(sides) == 3
    assert {side for _, side in sides} == {"train", "eval"}


def test_the_same_photographs_give_the_same_snapshot(source: Path, tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ids.append(ingested(source, tmp_path / name).id)
    assert ids[0] == ids[1]
