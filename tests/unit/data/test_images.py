"""Images are accepted and refused by every rule of docs/reference/formats.md."""

import io
import re
import struct
import tracemalloc
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
    data = encoded(pixels(), kind, quality=95)
    image = decode_image(data)
    assert (inspect_image(data, FORMATS[kind])[1], image.mode, image.size) == (kind, "RGB", (40, 24))
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
    assert decode_image(encoded(pixels(), kind) + b"\0trailing\xff\xd8\xff").size == (40, 24)


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
    assert decode_image(encoded(Image.new("1", (width, height)))).size == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_moving_images_are_refused(kind: str) -> None:
    assert reason(encoded(pixels(), kind, save_all=True, append_images=[pixels(seed=1)])) == "animated"


def test_a_phones_mpo_counts_as_its_first_frame() -> None:
    data = encoded(pixels(), "MPO", save_all=True, append_images=[pixels(seed=1)], quality=95)
    image = decode_image(data)
    assert inspect_image(data, ".jpg")[1] == "JPEG"
    assert np.abs(np.asarray(image, int) - np.asarray(pixels(), int)).mean() < 8


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_by_exif_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(pixels(), kind, exif=exif))
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
    assert decode_image(encoded(pixels(), kind, exif=note)).size == (40, 24)


def on_white(mode: str) -> Image.Image:
    image = pixels().convert("RGBA" if mode != "LA" else "LA")
    image.putalpha(0)
    image.paste(pixels().convert(image.mode), (20, 0))
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_flattened_on_white(mode: str) -> None:
    image = decode_image(encoded(on_white(mode)))
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert image.getpixel((22, 2)) != (255, 255, 255)


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    assert decode_image(encoded(image)).getpixel((5, 5)) == (255, 127, 127)
    assert decode_image(encoded(image, "WEBP", lossless=True)).getpixel((5, 5)) == (255, 127, 127)


def test_a_palette_with_a_transparent_colour_is_flattened_on_white() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_image(encoded(image)).getpixel((5, 5)) == (10, 200, 30)
    assert decode_image(encoded(image, transparency=1)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (0x80FF, 0x80), (0xFFFF, 255)])
def test_16_bits_are_scaled_not_clipped(level: int, expected: int) -> None:
    grey = Image.fromarray(np.full((20, 20), level, dtype=np.uint16))
    assert decode_image(encoded(grey)).getpixel((5, 5)) == (expected,) * 3
    row = b"\0" + struct.pack(">HHH", level, 0, level) * 20
    assert decode_image(png(20, 20, row * 20, depth=16, colour=2)).getpixel((5, 5)) == (expected, 0, expected)


def test_a_transparent_level_of_16_bits_is_flattened_on_white() -> None:
    row = b"\0" + struct.pack(">HH", 0x1234, 0x8000) * 10
    image = decode_image(png(20, 20, row * 20, depth=16, extra=chunk(b"tRNS", struct.pack(">H", 0x1234))))
    assert (image.getpixel((4, 4)), image.getpixel((5, 4))) == ((255, 255, 255), (128, 128, 128))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = decode_image(encoded(pixels().convert(mode), kind))
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


def photograph(width: int = 320, height: int = 240) -> Image.Image:
    """A textured picture on a white ground."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 9, (height, width, 1))
    values[: height // 5], values[-height // 5 :] = 255, 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


JPEGS: dict[str, bytes] = {
    "baseline": encoded(photograph(), "JPEG", quality=85),
    "optimized": encoded(photograph(), "JPEG", quality=85, optimize=True),
    "full color": encoded(photograph(), "JPEG", quality=95, subsampling=0),
    "progressive": encoded(photograph(), "JPEG", quality=85, progressive=True),
    "restarts": encoded(photograph(), "JPEG", quality=85, restart_marker_rows=1),
    "grey": encoded(photograph().convert("L"), "JPEG", quality=85),
    "grey progressive": encoded(photograph().convert("L"), "JPEG", quality=85, progressive=True),
    "cmyk": encoded(photograph().convert("CMYK"), "JPEG", quality=85),
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_pixels_of_an_intact_jpeg_equal_pillows(data: bytes) -> None:
    assert decode_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("at", [0.1, 0.35, 0.6, 0.85])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_whose_scan_lost_bytes_is_refused_though_it_has_its_end(kind: str, at: float) -> None:
    data = JPEGS[kind]
    begin, end = data.index(b"\xff\xda") + 14, len(data) - 2
    start = begin + int(at * (end - begin))
    # Few zeros in the last scans of a progressive JPEG cost a little sharpness, and no decoder notices them.
    for share in (0.3, 0.6) if "progressive" in kind else (0.05, 0.3, 0.6):
        stop = min(end, start + int(share * (end - begin)))
        assert reason(data[:start] + bytes(stop - start) + data[stop:]) == "corrupt"
        assert reason(data[:start] + data[stop:]) == "corrupt"
        assert reason(data[:start] + data[end:]) == "corrupt"


def test_short_zeros_in_a_scan_are_refused_though_no_block_is_lost() -> None:
    data = JPEGS["baseline"]
    begin = data.index(b"\xff\xda") + 14
    for at in range(begin + 2000, len(data) - 2000, 400):
        assert reason(data[:at] + bytes(16) + data[at + 16 :]) == "corrupt"


@pytest.mark.parametrize("kind", ["progressive", "grey progressive"])
def test_a_progressive_jpeg_cut_between_two_scans_is_refused_though_it_has_its_end(kind: str) -> None:
    *scans, last = (match.start() for match in re.finditer(rb"\xff\xc4|\xff\xda", JPEGS[kind]))
    for cut in (scans[4], scans[-2], last):
        assert reason(JPEGS[kind][:cut] + b"\xff\xd9") == "corrupt"


def test_a_jpeg_with_scans_without_end_is_refused_before_it_takes_minutes() -> None:
    data = JPEGS["grey progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert reason(data[:-2] + scan * 200 + data[-2:]) == "corrupt"


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF\0\2\1\0\0\1\0\1\0\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\5\2profile"),
        segment(0xE2, b"MPF\0garbage"),
        segment(0xED, b"Photoshop 3.0\x008BIM\4\4\x40"),
        segment(0xEE, b"Adobe\0"),
        segment(0xE1, b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff" * 6000) * 300,
        b"padding\0",
    ],
    ids=lambda extra: str(extra[:20]),
)
def test_malformed_or_huge_metadata_leaves_a_jpeg_as_it_is(extra: bytes) -> None:
    data = JPEGS["baseline"]
    assert decode_image(data[:20] + extra + data[20:]).tobytes() == decode_image(data).tobytes()


def test_zeros_between_the_scan_and_the_end_of_a_jpeg_are_padding() -> None:
    for data in JPEGS.values():
        padded = data[:-2] + bytes(100) + data[-2:]
        if b"\xff\xc2" not in data:  # nothing else is between the scans of a progressive one
            assert decode_image(padded).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_metadata_beyond_pillows_limits_is_no_reason_to_refuse_a_png(name: bytes) -> None:
    head = {b"iCCP": b"profile\0\0", b"zTXt": b"note\0\0", b"iTXt": b"note\0\1\0\0\0"}[name]
    note = chunk(name, head + zlib.compress(bytes(2**28), 9))
    data = encoded(pixels())
    assert decode_image(data[:33] + note + data[33:]).tobytes() == pixels().tobytes()
    assert decode_image(data[:-12] + note + data[-12:]).tobytes() == pixels().tobytes()


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"pHYs", b""),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", b"\0"),
        chunk(b"sRGB", b"\0\0"),
        chunk(b"tRNS", b"\0"),
        chunk(b"iCCP", b"no profile"),
        chunk(b"zTXt", b"x\0\1"),
        chunk(b"acTL", b"\0"),
        chunk(b"eXIf", b"II*\0\x08\0\0\0" + b"\xff" * 70_000),
        chunk(b"prVt", b"private"),
        chunk(b"tEXt", b"note\0text")[:-1] + b"!",
    ],
    ids=lambda extra: str(extra[4:8]),
)
def test_malformed_metadata_leaves_a_png_as_it_is(extra: bytes) -> None:
    data = encoded(pixels())
    assert decode_image(data[:33] + extra + data[33:]).tobytes() == pixels().tobytes()


def test_a_transparency_with_a_bad_checksum_is_refused() -> None:
    data = encoded(Image.new("L", (20, 20), 9))
    assert reason(data[:33] + chunk(b"tRNS", b"\0\x09")[:-1] + b"!" + data[33:]) == "corrupt"


def test_the_transparent_color_of_16_bits_is_compared_with_all_of_them() -> None:
    clear, near, far = (0x1234, 0x12FF, 0x8000), (0x1235, 0x12FF, 0x8000), (0xFFFF, 0, 0)
    row = b"\0" + struct.pack(">9H", *clear, *near, *far) * 7
    extra = chunk(b"tRNS", struct.pack(">3H", *clear))
    for orientation, first in ((1, 0), (2, 20)):
        exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, orientation, 0))
        image = decode_image(png(21, 20, row * 20, depth=16, colour=2, extra=extra + exif))
        step = 1 if first == 0 else -1
        values = [image.getpixel((first + step * at, 3)) for at in range(3)]
        assert values == [(255, 255, 255), (0x12, 0x12, 0x80), (255, 0, 0)]


@pytest.mark.parametrize(("depth", "level"), [(1, 1), (2, 1), (2, 3), (4, 1), (4, 14), (8, 200)])
def test_the_transparent_grey_of_any_depth_is_white(depth: int, level: int) -> None:
    levels = [level, 0] * 16
    bits = "".join(f"{value:0{depth}b}" for value in levels)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    data = png(32, 20, row * 20, depth=depth, extra=chunk(b"tRNS", struct.pack(">H", level)))
    grey = level * 255 // (2**depth - 1)
    assert [decode_image(data).getpixel((at, 3)) for at in range(2)] == [(255, 255, 255), (0, 0, 0)]
    opaque = png(32, 20, row * 20, depth=depth)
    assert [decode_image(opaque).getpixel((at, 3)) for at in range(2)] == [(grey, grey, grey), (0, 0, 0)]


@pytest.mark.parametrize(("colour", "samples"), [(4, (0x80FF, 0x8000)), (6, (0x80FF, 0x80FF, 0x80FF, 0x8000))])
def test_alpha_of_16_bits_is_flattened_on_white(colour: int, samples: tuple[int, ...]) -> None:
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 20
    value = 0x80 * 0x80 // 255 + 255 * (255 - 0x80) // 255
    for level in decode_image(png(20, 20, row * 20, depth=16, colour=colour)).getpixel((5, 5)):  # type: ignore[union-attr]
        assert abs(level - value) <= 1


def animated_png(frames: int, *, default_is_frame: bool) -> bytes:
    data = encoded(pixels())
    control = struct.pack(">IIIIHHBB", 40, 24, 0, 0, 1, 10, 0, 0)
    (idat,) = (data[at : at + int.from_bytes(data[at - 8 : at - 4], "big")] for at in [data.index(b"IDAT") + 4])
    parts, number = chunk(b"acTL", struct.pack(">II", frames, 0)), 0
    if default_is_frame:
        parts += chunk(b"fcTL", struct.pack(">I", number) + control)
        frames, number = frames - 1, 1
    parts += chunk(b"IDAT", idat)
    for _ in range(frames):
        parts += chunk(b"fcTL", struct.pack(">I", number) + control) + chunk(
            b"fdAT", struct.pack(">I", number + 1) + idat
        )
        number += 2
    return data[:33] + parts + chunk(b"IEND", b"")


def test_an_animation_of_one_frame_is_a_still_image() -> None:
    assert decode_image(animated_png(1, default_is_frame=True)).tobytes() == pixels().tobytes()
    assert reason(animated_png(2, default_is_frame=True)) == "animated"
    # Which of the two images is shown depends on the viewer.
    assert reason(animated_png(1, default_is_frame=False)) == "animated"
    still = encoded(pixels(), "WEBP", lossless=True)
    frame = riff(b"ANMF", bytes(6) + struct.pack("<HBHB", 39, 0, 23, 0) + bytes(4) + still[12:])
    canvas = bytes([2, 0, 0, 0]) + struct.pack("<HBHB", 39, 0, 23, 0)
    body = b"WEBP" + riff(b"VP8X", canvas) + riff(b"ANIM", bytes(6)) + frame
    assert decode_image(b"RIFF" + struct.pack("<I", len(body)) + body).tobytes() == pixels().tobytes()
    body += frame
    assert reason(b"RIFF" + struct.pack("<I", len(body)) + body) == "animated"


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


@pytest.mark.parametrize("name", [b"ICCP", b"EXIF", b"XMP ", b"prVt"])
def test_malformed_metadata_leaves_a_webp_as_it_is(name: bytes) -> None:
    plain = encoded(pixels(), "WEBP", lossless=True)
    for flags in (0x00, 0x20 | 0x08 | 0x04):
        canvas = bytes([flags, 0, 0, 0]) + struct.pack("<HBHB", 39, 0, 23, 0)
        for extra in (riff(name, b"II*\0" + b"\xff" * 9), riff(name, b"") * 3):
            for parts in ((extra, plain[12:]), (plain[12:], extra)):
                body = b"WEBP" + riff(b"VP8X", canvas) + b"".join(parts)
                assert decode_image(b"RIFF" + struct.pack("<I", len(body)) + body).tobytes() == pixels().tobytes()


def test_values_of_exif_data_take_no_memory() -> None:
    count = 65_535
    entries = b"".join(struct.pack("<HHII", 0x8000 + at % 999, 7, 2**22, 8) for at in range(count))
    note = chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(2**22))
    data = encoded(pixels())
    tracemalloc.start()
    try:
        assert decode_image(data[:33] + note + data[33:]).tobytes() == pixels().tobytes()
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
