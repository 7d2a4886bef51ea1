"""Validate and decode images: which bytes are accepted, and their pixels as upright RGB.

Content decides the format. Every rule on the header is applied before a pixel is decoded.
"""

import io
import re
import warnings
import zlib
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hardcase.data.quarantine import BrokenRule, Reason

MAX_BYTES: Final = 32 * 2**20
MAX_PIXELS: Final = 64_000_000
MIN_SIDE, MAX_SIDE, MAX_RATIO = 16, 16_384, 20
SUFFIXES: Final = {"JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "WEBP": (".webp",)}
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Excludes stuffed zeros, fill bytes and the standalone markers, which carry no length.
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
ROTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(BrokenRule):
    """Bytes that are no valid image."""


def inspect_image(data: bytes, suffix: str | None = None) -> tuple[Image.Image, str]:
    """Return an image upright in RGB, and its format, `JPEG`, `PNG` or `WEBP`; raise `BadImage` if it breaks a rule.

    A `suffix` of None is not checked.
    """
    if len(data) > MAX_BYTES:
        raise BadImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; at most {MAX_BYTES}")
    kind = _detect_format(data)
    if suffix is not None and suffix.lower() not in SUFFIXES[kind]:
        raise BadImage(Reason.SUFFIX_MISMATCH, f"holds {kind}, named {suffix or 'without a suffix'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                _check_shape(image, kind)
                _check_complete(data, kind)
                image.seek(0)
                image.load()
                return _convert_to_upright_rgb(image), kind
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(Reason.TOO_MANY_PIXELS, f"at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:  # its message holds a memory address, which differs from run to run
        raise BadImage(Reason.CORRUPT, f"cannot be read as {kind}") from error
    except Exception as error:  # Pillow and its codecs raise whatever they like on hostile bytes
        raise BadImage(Reason.CORRUPT, f"{type(error).__name__}: {error}"[:200]) from error


def decode_image(data: bytes) -> Image.Image:
    """Return upright RGB pixels, or raise `BadImage`."""
    return inspect_image(data)[0]


def _detect_format(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == PNG_SIGNATURE:
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BadImage(Reason.UNSUPPORTED_FORMAT, "neither JPEG, PNG nor WebP")


def _check_shape(image: Image.Image, kind: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(Reason.TOO_MANY_PIXELS, f"{width} × {height}; at most {MAX_PIXELS} pixels")
    if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
        raise BadImage(Reason.BAD_SIDE, f"{width} × {height}; sides are {MIN_SIDE} to {MAX_SIDE}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadImage(Reason.BAD_RATIO, f"{width} × {height}; at most {MAX_RATIO}:1")
    # A phone's MPO holds more frames after the first image. Any other image with frames is animated.
    if kind != "JPEG" and getattr(image, "is_animated", False):
        raise BadImage(Reason.ANIMATED, f"{getattr(image, 'n_frames', 0)} frames")


def _check_complete(data: bytes, kind: str) -> None:
    """Refuse an image without its end, which Pillow would accept."""
    if kind == "PNG":
        _check_png(data)
    elif kind == "JPEG":
        _check_jpeg(data)
    elif int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadImage(Reason.CORRUPT, "the file is shorter than the size in its RIFF header")


def _check_png(data: bytes) -> None:
    at = len(PNG_SIGNATURE)
    while True:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or len(name) < 4:
            raise BadImage(Reason.CORRUPT, "the file ends before its IEND chunk")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage(Reason.CORRUPT, f"bad CRC in chunk {name!r}")
        if name in (b"acTL", b"fcTL"):
            raise BadImage(Reason.ANIMATED, "an animated PNG")
        if name == b"IEND":
            return
        at = end


def _check_jpeg(data: bytes) -> None:
    """Walk the markers to the end-of-image of the first image."""
    at = 2
    while marker := JPEG_MARKER.search(data, at):
        at = marker.end()
        if data[at - 1] == 0xD9:
            return
        at += int.from_bytes(data[at : at + 2], "big")
    raise BadImage(Reason.CORRUPT, "no end-of-image marker")


def _convert_to_upright_rgb(image: Image.Image) -> Image.Image:
    upright = image
    if (orientation := _read_orientation(image)) in ROTATIONS:
        upright = image.transpose(ROTATIONS[orientation])
    if upright.mode.startswith("I"):
        # The high byte of 16 bits: Pillow's own conversion would clip.
        deep = np.asarray(upright)
        deep = np.where(deep == upright.info.get("transparency"), 0xFFFF, deep)
        upright = Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba)
        return background
    return upright.convert("RGB")


def _read_orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data does not invalidate an image
        return None
