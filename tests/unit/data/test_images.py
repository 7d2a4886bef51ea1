"""Images are accepted and refused by every rule of docs/reference/formats.md."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from hardcase.data.images import MAX_BYTES, BadImage, decode_image, inspect_image

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def pixels(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    """A smooth picture with a red top left corner."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    coarse[0, 0] = 255, 0, 0
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes, suffix: str | None = None) -> str:
    with pytest.raises(BadImage) as caught:
        inspect_image(data, suffix)
    assert caught.value.detail
    assert " at 0x" not in caught.value.detail  # else the quarantine would differ from run to run
    return caught.value.reason


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG with correct checksums, whatever is in it."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("kind", FORMATS)
def test_a_good_image_of_each_format_gets_in(kind: str) -> None:
    image, found = inspect_image(encoded(pixels(), kind, quality=95), FORMATS[kind])
    assert (found, image.mode, image.size) == (kind, "RGB", (40, 24))
    assert np.abs(np.asarray(image, int) - np.asarray(pixels(), int)).mean() < 8


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jfif", ".JPG", ".Jpeg"])
def test_every_suffix_of_jpeg_in_any_case_is_right(suffix: str) -> None:
    assert inspect_image(encoded(pixels(), "JPEG"), suffix)[1] == "JPEG"


@pytest.mark.parametrize(
    ("kind", "suffix"), [("JPEG", ".png"), ("PNG", ".jpg"), ("WEBP", ".jpeg"), ("PNG", ""), ("JPEG", ".mpo")]
)
def test_a_renamed_image_is_refused(kind: str, suffix: str) -> None:
    assert reason(encoded(pixels(), kind), suffix) == "suffix_mismatch"


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO", "PPM", "PDF", "JPEG2000", "AVIF"])
def test_other_formats_are_refused_even_under_a_right_name(kind: str) -> None:
    assert reason(encoded(pixels(), kind), ".png") == "unsupported_format"


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\0\0\0\0WAVE", b"\0" * 99]
)
def test_bytes_of_other_formats_are_refused(data: bytes) -> None:
    assert reason(data) == "unsupported_format"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert reason(data[: int(len(data) * share)]) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_missing_end_marker_is_refused_though_every_pixel_is_there(kind: str) -> None:
    assert reason(encoded(pixels(), kind)[: -2 if kind == "JPEG" else -12]) == "corrupt"


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    data = encoded(pixels(200, 200), "JPEG", progressive=True)
    assert inspect_image(data)
    assert reason(data[: data.rindex(b"\xff\xda")]) == "corrupt"


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_after_the_end_are_tolerated(kind: str) -> None:
    assert inspect_image(encoded(pixels(), kind) + b"\0trailing\xff\xd8\xff")[0].size == (40, 24)


@pytest.mark.parametrize("name", [b"IDAT", b"IEND", b"IHDR"])
def test_a_bad_checksum_is_refused(name: bytes) -> None:
    data = bytearray(encoded(pixels()))
    at = data.index(name)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    data[end] ^= 1
    assert reason(bytes(data)) == "corrupt"


def test_pixels_truncated_under_right_checksums_are_refused() -> None:
    rows = np.random.default_rng(0).bytes(33 * 32)
    rows = b"".join(b"\0" + rows[at : at + 32] for at in range(0, 1024, 32))
    data = png(32, 32, rows)
    assert inspect_image(data)
    at, end = data.index(b"IDAT"), data.index(b"IEND") - 8
    cut = data[: at - 4] + chunk(b"IDAT", data[at + 4 : end - 300]) + chunk(b"IEND", b"")
    assert reason(cut) == "corrupt"
    assert reason(data[: at - 4] + chunk(b"IEND", b"")) == "corrupt"


@pytest.mark.parametrize("kind", FORMATS)
def test_noise_after_a_right_head_is_one_clear_refusal(kind: str) -> None:
    data, rng = encoded(pixels(), kind), np.random.default_rng(0)
    assert reason(data[:16] + rng.bytes(400)) == "corrupt"
    for _ in range(60):  # a flipped byte either leaves a picture or is refused; nothing else may come out
        at = int(rng.integers(12, len(data)))
        try:
            inspect_image(data[:at] + rng.bytes(1) + data[at + 1 :])
        except BadImage as error:
            assert error.detail


def test_more_than_32_mib_is_refused_before_it_is_read() -> None:
    assert inspect_image(encoded(pixels(), "JPEG").ljust(MAX_BYTES, b"\0"))
    assert reason(encoded(pixels(), "JPEG").ljust(MAX_BYTES + 1, b"\0")) == "too_many_bytes"


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8000), (16_384, 16_384), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_decompression_bomb_is_refused_by_its_head(width: int, height: int) -> None:
    assert reason(png(width, height, b"")) == "too_many_pixels"


def test_a_bomb_of_each_other_format_is_refused_by_its_head() -> None:
    jpeg = bytearray(encoded(pixels(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    assert reason(bytes(jpeg)) == "too_many_pixels"
    webp = bytearray(encoded(pixels(), "WEBP"))
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    assert reason(bytes(webp)) in ("too_many_pixels", "corrupt")


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(15, 40, "bad_side"), (40, 15, "bad_side"), (1, 1, "bad_side"), (16_385, 900, "bad_side"), (321, 16, "bad_ratio")],
)
def test_sides_and_ratio_are_limited(width: int, height: int, expected: str) -> None:
    assert reason(encoded(Image.new("1", (width, height)))) == expected


@pytest.mark.parametrize(("width", "height"), [(16, 16), (320, 16), (16, 320), (16_384, 820)])
def test_the_limits_themselves_are_in(width: int, height: int) -> None:
    assert inspect_image(encoded(Image.new("1", (width, height))))[0].size == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_moving_images_are_refused(kind: str) -> None:
    assert reason(encoded(pixels(), kind, save_all=True, append_images=[pixels(seed=1)])) == "animated"


def test_a_phones_mpo_counts_as_its_first_frame() -> None:
    data = encoded(pixels(), "MPO", save_all=True, append_images=[pixels(seed=1)], quality=95)
    image, kind = inspect_image(data, ".jpg")
    assert kind == "JPEG"
    assert np.abs(np.asarray(image, int) - np.asarray(pixels(), int)).mean() < 8


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_by_exif_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = inspect_image(encoded(pixels(), kind, exif=exif))[0]
    assert image.size == ((40, 24) if orientation < 5 else (24, 40))
    width, height = image.size
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    red, green, _ = image.getpixel((corner[0] * (width - 1), corner[1] * (height - 1)))  # type: ignore[misc]
    assert red > 200 > 60 > green


@pytest.mark.parametrize(
    "note", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_exif_data_does_not_invalidate_an_image(kind: str, note: bytes) -> None:
    assert inspect_image(encoded(pixels(), kind, exif=note))[0].size == (40, 24)


def on_white(mode: str) -> Image.Image:
    image = pixels().convert("RGBA" if mode != "LA" else "LA")
    image.putalpha(0)
    image.paste(pixels().convert(image.mode), (20, 0))
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_flattened_on_white(mode: str) -> None:
    image = inspect_image(encoded(on_white(mode)))[0]
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert image.getpixel((22, 2)) != (255, 255, 255)


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    assert inspect_image(encoded(image))[0].getpixel((5, 5)) == (255, 127, 127)
    assert inspect_image(encoded(image, "WEBP", lossless=True))[0].getpixel((5, 5)) == (255, 127, 127)


def test_a_palette_with_a_transparent_colour_is_flattened_on_white() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert inspect_image(encoded(image))[0].getpixel((5, 5)) == (10, 200, 30)
    assert inspect_image(encoded(image, transparency=1))[0].getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (0x80FF, 0x80), (0xFFFF, 255)])
def test_16_bits_are_scaled_not_clipped(level: int, expected: int) -> None:
    grey = Image.fromarray(np.full((20, 20), level, dtype=np.uint16))
    assert inspect_image(encoded(grey))[0].getpixel((5, 5)) == (expected,) * 3
    row = b"\0" + struct.pack(">HHH", level, 0, level) * 20
    assert inspect_image(png(20, 20, row * 20, depth=16, colour=2))[0].getpixel((5, 5)) == (expected, 0, expected)


def test_a_transparent_level_of_16_bits_is_flattened_on_white() -> None:
    row = b"\0" + struct.pack(">HH", 0x1234, 0x8000) * 10
    image = inspect_image(png(20, 20, row * 20, depth=16, extra=chunk(b"tRNS", struct.pack(">H", 0x1234))))[0]
    assert (image.getpixel((4, 4)), image.getpixel((5, 4))) == ((255, 255, 255), (128, 128, 128))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = inspect_image(encoded(pixels().convert(mode), kind))[0]
    assert image.mode == "RGB"
    red, green, _ = image.getpixel((2, 2))  # type: ignore[misc]
    assert mode in ("1", "L") or red > 200 > 80 > green


def test_notes_beside_the_pixels_are_no_reason_to_refuse() -> None:
    note = PngInfo()
    note.add_text("prompt", "a red kettle " * 2000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert inspect_image(encoded(pixels(), pnginfo=note, icc_profile=profile))
    assert inspect_image(encoded(pixels(), "JPEG", comment="x" * 60_000, icc_profile=profile))


@pytest.mark.parametrize("open_", [decode_image, lambda data: inspect_image(data)[0]], ids=["decode", "inspect"])
def test_there_is_no_way_to_pixels_around_the_rules(open_: Callable[[bytes], Image.Image]) -> None:
    with pytest.raises(BadImage):
        open_(encoded(pixels(8, 8)))
    assert open_(encoded(pixels())).tobytes() == pixels().tobytes()
