"""Originals that look the same are connected, and different products on the same background are not."""

import io
import random
from collections import Counter
from collections.abc import Callable

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hardcase.data.near import THUMBNAIL_BYTES, find_near, make_thumbnail


def draw_product(seed: int) -> Image.Image:
    """Draw a product on white, near the middle. Half of the hash of a centered one would be chance."""
    rng, side = random.Random(seed), 96
    image = Image.new("RGB", (side, side), "white")
    body, band = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
    width, height = rng.uniform(0.15, 0.4) * side, rng.uniform(0.25, 0.45) * side
    left, top = (side / 2 - half + rng.uniform(-0.05, 0.05) * side for half in (width, height))
    draw = ImageDraw.Draw(image)
    rng.choice([draw.rectangle, draw.ellipse])((left, top, left + 2 * width, top + 2 * height), fill=body)
    if rng.random() < 0.7:
        start, end = sorted(rng.uniform(0.2, 1.8) for _ in range(2))
        draw.rectangle((left + width * 0.4, top + height * start, left + width * 1.5, top + height * end), fill=band)
    return image


def connect(images: list[Image.Image], distance: int = 4) -> list[int]:
    """Return the component of each image."""
    hashes = np.array([int(str(imagehash.phash(image.convert("L"))), 16) for image in images], dtype=np.uint64)
    thumbnails = np.stack([np.frombuffer(make_thumbnail(image), np.uint8) for image in images])
    return label(find_near(hashes, thumbnails, distance), len(images))


def label(pairs: np.ndarray, count: int) -> list[int]:
    graph = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(count, count))
    return list(connected_components(graph, directed=False)[1].tolist())


def test_different_products_on_white_do_not_chain_into_one_group() -> None:
    images = [draw_product(seed) for seed in range(1500)]
    hashes = np.array([int(str(imagehash.phash(image.convert("L"))), 16) for image in images], dtype=np.uint64)
    alike = np.zeros((len(images), THUMBNAIL_BYTES), dtype=np.uint8)
    assert max(Counter(label(find_near(hashes, alike, 4), len(images))).values()) > 60  # by their hashes alone
    assert max(Counter(connect(images)).values()) < 10


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda image: image.resize((48, 48)),
        lambda image: image.resize((200, 200), Image.Resampling.BICUBIC),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    ],
)
def test_an_original_and_its_changed_copy_are_one_group(change: Callable[[Image.Image], Image.Image]) -> None:
    images = [draw_product(seed) for seed in range(60)]
    components = connect([*images, *map(change, images)], distance=10)
    assert np.mean([components[at] == components[at + 60] for at in range(60)]) > 0.95


def test_equal_images_are_connected_and_so_are_flat_ones() -> None:
    flat = [Image.new("RGB", (32, 32), shade) for shade in ("white", "grey", "black")]
    assert len(set(connect([draw_product(1)] * 5 + flat))) == 2


def test_nothing_is_near_to_nothing() -> None:
    empty = np.empty(0, dtype=np.uint64), np.empty((0, THUMBNAIL_BYTES), dtype=np.uint8)
    assert find_near(*empty, 4).shape == (2, 0)
