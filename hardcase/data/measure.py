"""Measure an image: its digest, format, size, luminance, and the perceptual hash of an original."""

from typing import NamedTuple

import imagehash
import numpy as np
import scipy.fftpack  # noqa: F401 — imagehash imports it when first used, which every worker would pay for
from PIL import Image

from hardcase.data.images import inspect_image
from hardcase.store.digest import bytes_digest

LEVELS = np.arange(256)


class ImageStats(NamedTuple):
    """What the snapshot holds of an image besides its bytes."""

    sha256: str
    format: str
    width: int
    height: int
    phash: str | None  # 64 bits in hexadecimal
    mean: float  # of luminance, 0 to 255
    std: float


def measure_image(data: bytes, suffix: str | None, *, hashed: bool) -> tuple[ImageStats, Image.Image]:
    """Decode and measure an image, and return its statistics and itself, or raise `BadImage`.

    Only a `hashed` image has a perceptual hash. The image is upright, of a mode of `inspect_image`.

    The hash takes as long as the decoding of a JPEG: Pillow reduces all pixels to 32 × 32 by a Lanczos filter.
    """
    image, kind = inspect_image(data, suffix)
    luminance = image.convert("L")
    shares = np.array(luminance.histogram()) / (luminance.width * luminance.height)
    mean = float(shares @ LEVELS)
    stats = ImageStats(
        sha256=bytes_digest(data),
        format=kind,
        width=luminance.width,
        height=luminance.height,
        phash=np.packbits(imagehash.phash(luminance).hash).tobytes().hex() if hashed else None,
        mean=mean,
        std=float(np.sqrt(shares @ (LEVELS - mean) ** 2)),
    )
    return stats, image
