"""What the snapshot holds of an image equals the plain definition of it."""

import hashlib
import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from hardcase.data.images import BadImage
from hardcase.data.measure import measure_image


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_statistics_of_an_image_equal_those_of_its_upright_rgb_pixels(mode: str, orientation: int) -> None:
    coarse = np.random.default_rng(3).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((150, 90), Image.Resampling.BICUBIC).convert(mode)
    kind = "PNG" if mode in ("P", "RGBA") else "JPEG"
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    stats, _ = measure_image(data, ".png" if kind == "PNG" else ".jpg", hashed=True)

    rgb = Image.open(io.BytesIO(data)).convert("RGB")
    upright = rgb.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else rgb
    luminance = upright.convert("L")
    levels = np.asarray(luminance, float)
    assert stats.sha256 == hashlib.sha256(data).hexdigest()
    assert (stats.format, stats.width, stats.height) == (kind, *upright.size)
    assert stats.phash == str(imagehash.phash(luminance))
    assert (stats.mean, stats.std) == pytest.approx((levels.mean(), levels.std()), rel=1e-12)
    assert measure_image(data, None, hashed=False)[0] == stats._replace(phash=None)


def test_a_bad_image_has_no_statistics() -> None:
    with pytest.raises(BadImage):
        measure_image(b"", ".jpg", hashed=True)
