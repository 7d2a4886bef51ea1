"""Validate and decode images: which bytes are accepted, and their pixels as upright RGB.

Content decides the format. Every rule on the header is applied before a pixel is decoded. Decoders see only those parts
of a file that its pixels depend on, so that damaged or huge metadata neither refuses an image nor takes memory.

JPEG is decoded by libjpeg-turbo through simplejpeg, which reports what libjpeg merely warns of: bytes that no pixel
needs, or pixels without bytes. Its pixels equal Pillow's. Neither JPEG nor WebP has a checksum, so some damage stays
unseen.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from hardcase.data.quarantine import BrokenRule, Reason

MAX_BYTES: Final = 32 * 2**20
MAX_PIXELS: Final = 64_000_000
MIN_SIDE, MAX_SIDE, MAX_RATIO = 16, 16_384, 20
SUFFIXES: Final = {"JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "WEBP": (".webp",)}
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TRNS_LENGTHS: Final = {0: 2, 2: 6}  # by color type; browsers ignore the chunk if it differs
# No pixel depends on them, so browsers ignore them when they are damaged.
PNG_METADATA: Final = (
    *(b"bKGD", b"cHRM", b"cICP", b"cLLI", b"eXIf", b"gAMA", b"hIST", b"iCCP", b"iTXt"),
    *(b"mDCV", b"pHYs", b"sBIT", b"sPLT", b"sRGB", b"tEXt", b"tIME", b"zTXt"),
)
WEBP_PIXELS: Final = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_METADATA_FLAGS: Final = 0x20 | 0x08 | 0x04
# Excludes stuffed zeros, fill bytes and the standalone markers, which carry no length.
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
DHT, JPG, DAC, EOI, SOS, APP0, APP1, APP14 = 0xC4, 0xC8, 0xCC, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
PROGRESSIVE: Final = (0xC2, 0xC6, 0xCA, 0xCE)
# Encoders write about ten. Each costs a pass over all pixels, however few its bytes.
MAX_SCANS: Final = 100
END_OF_BLOCK: Final = 0
LONG_ZEROS: Final = bytes(12)
# By Pillow's mode: how simplejpeg decodes, and how Pillow reads the result. CMYK is inverted, as Adobe writes it.
JPEG_MODES: Final = {"L": ("GRAY", "L", "L"), "RGB": ("RGBX", "RGBX", "RGBX"), "CMYK": ("CMYK", "CMYK", "CMYK;I")}
# Pillow scales samples of 2 and 4 bits to 8, but not the transparent one.
GREY_SCALES: Final = {"L;2": 85, "L;4": 17}
BYTE_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION: Final = 0x0112
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


def decode_image(data: bytes) -> Image.Image:
    """Return upright RGB pixels, or raise `BadImage`."""
    return inspect_image(data)[0].convert("RGB")


def inspect_image(data: bytes, suffix: str | None = None) -> tuple[Image.Image, str]:
    """Return an upright image and its format, `JPEG`, `PNG` or `WEBP`, or raise `BadImage`.

    The mode is the cheapest of RGB, RGBX and L: a conversion takes up to a quarter of the time of decoding. A suffix of
    None is not checked.
    """
    if len(data) > MAX_BYTES:
        raise BadImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; at most {MAX_BYTES}")
    kind = _detect_format(data) if suffix is None else check_suffix(data, suffix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stripped, exif = STRIP[kind](data)
            with Image.open(io.BytesIO(stripped), formats=[kind]) as image:
                _check_shape(image)
                pixels = _decode_jpeg(image, stripped) if kind == "JPEG" else _flatten(image, stripped)
                turn = ROTATIONS.get(_read_orientation(exif))
                return (pixels if turn is None else pixels.transpose(turn)), kind
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(Reason.TOO_MANY_PIXELS, f"at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:  # its message holds a memory address, which differs from run to run
        raise BadImage(Reason.CORRUPT, f"cannot be read as {kind}") from error
    except Exception as error:  # the decoders raise whatever they like on hostile bytes
        raise BadImage(Reason.CORRUPT, f"{type(error).__name__}: {error}"[:200]) from error


def check_suffix(data: bytes, suffix: str) -> str:
    """Return the format of an image, or raise `BadImage` if its name has another suffix."""
    kind = _detect_format(data)
    if suffix.lower() not in SUFFIXES[kind]:
        raise BadImage(Reason.SUFFIX_MISMATCH, f"holds {kind}, named {suffix or 'without a suffix'}")
    return kind


def _detect_format(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == PNG_SIGNATURE:
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BadImage(Reason.UNSUPPORTED_FORMAT, "neither JPEG, PNG nor WebP")


def _check_shape(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(Reason.TOO_MANY_PIXELS, f"{width} × {height}; at most {MAX_PIXELS} pixels")
    if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
        raise BadImage(Reason.BAD_SIDE, f"{width} × {height}; sides are {MIN_SIDE} to {MAX_SIDE}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadImage(Reason.BAD_RATIO, f"{width} × {height}; at most {MAX_RATIO}:1")
    if getattr(image, "is_animated", False):
        raise BadImage(Reason.ANIMATED, f"{getattr(image, 'n_frames', 0)} frames")


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG's first image without metadata, and its EXIF data; refuse damage of which libjpeg does not warn."""
    kept, exif, first_scan, scans, progressive = [data[:2]], b"", 0, 0, False
    missing: dict[int, set[int]] = {}  # by component, the coefficients without their last bit
    zero_codes: dict[int, int] = {}  # by Huffman table, the symbol whose code consists of zeros
    at, zeros_are_damage = 2, False
    while marker := JPEG_MARKER.search(data, at):
        start, begin, code = marker.start(), marker.end() + 2, data[marker.end() - 1]
        if code == EOI:
            break
        at = marker.end() + int.from_bytes(data[marker.end() : begin], "big")
        body = data[begin:at]
        if code == SOS:
            first_scan, scans, count = first_scan or start, scans + 1, body[0]
            low, high, bits = body[1 + 2 * count : 4 + 2 * count] if progressive else (0, 63, 0)
            for component in body[1 : 1 + 2 * count : 2]:
                if bits & 15 == 0:
                    missing[component] -= set(range(low, high + 1))
            zeros_are_damage = not progressive and zero_codes.get(0x10 | body[2] & 15, END_OF_BLOCK) != END_OF_BLOCK
        elif first_scan:
            continue
        elif code == APP1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif code == APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
            kept.append(data[start:begin] + b"JFIF\0\1\1" + body[7:])  # libjpeg warns of other revisions
        elif code < APP0 or (code == APP14 and body.startswith(b"Adobe") and len(body) >= 12):
            kept.append(data[start:at])
            if code == DHT:
                while body:
                    zero_codes[body[0]], body = body[17], body[17 + sum(body[1:17]) :]
            elif 0xC0 <= code <= 0xCF and code not in (JPG, DAC):
                progressive = code in PROGRESSIVE
                missing = {component: set(range(64)) for component in body[6::3]}
    else:
        raise BadImage(Reason.CORRUPT, "no end-of-image marker")
    if any(missing.values()) or not scans:  # libjpeg would leave coarse pixels
        raise BadImage(Reason.CORRUPT, "ends before its last scan")
    if scans > MAX_SCANS:
        raise BadImage(Reason.CORRUPT, f"{scans} scans; at most {MAX_SCANS}")
    # Codes of zeros that end no block are dozens of equal coefficients, which no image has.
    if zeros_are_damage and scans == 1 and LONG_ZEROS in data[first_scan:start].rstrip(b"\0"):
        raise BadImage(Reason.CORRUPT, "zeros instead of pixels")
    return b"".join((*kept, data[first_scan:start], b"\xff\xd9")), exif


def _decode_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    colorspace, mode, raw = JPEG_MODES[image.mode]
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError:
        # Some encoders pad the scan with zeros. No pixel needs them if the bytes before them suffice.
        unpadded, end = data[:-2].rstrip(b"\0"), data[-2:]
        if unpadded + end == data:
            raise
        try:
            pixels = simplejpeg.decode_jpeg(unpadded + end, colorspace)
        except ValueError:
            pixels = simplejpeg.decode_jpeg(unpadded + b"\0" + end, colorspace)
    decoded = Image.frombuffer(mode, image.size, pixels, "raw", raw, 0, 1)
    return decoded.convert("RGB") if mode == "CMYK" else decoded


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Return a PNG without metadata, and its EXIF data; refuse a wrong checksum, an animation or a missing end."""
    kept, exif, at, name = [PNG_SIGNATURE], b"", len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or len(name) < 4:
            raise BadImage(Reason.CORRUPT, "the file ends before its IEND chunk")
        intact = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if not intact and name not in PNG_METADATA:
            raise BadImage(Reason.CORRUPT, f"bad CRC in chunk {name!r}")
        if name == b"fdAT":  # without one, an animation has a single frame: the still image
            raise BadImage(Reason.ANIMATED, "an animated PNG")
        if name == b"eXIf" and intact:
            exif = data[at + 8 : end - 4]
        if name in PNG_PIXELS and not (name == b"tRNS" and length != TRNS_LENGTHS.get(data[25], length)):
            kept.append(data[at:end])
        at = end
    return b"".join(kept), exif


def _strip_webp(data: bytes) -> tuple[bytes, bytes]:
    """Return a WebP without metadata, and its EXIF data; refuse a file that is shorter than its header promises."""
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        raise BadImage(Reason.CORRUPT, "the file is shorter than the size in its RIFF header")
    kept, exif, at = [b"WEBP"], b"", 12
    while at + 8 <= end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        chunk, at = data[at : min(at + 8 + size, end)], at + 8 + size + size % 2
        if name == b"EXIF":
            exif = chunk[8:]
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_METADATA_FLAGS]) + chunk[9:]
        if name in WEBP_PIXELS:
            kept.append(chunk + b"\0" * (len(chunk) % 2))
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, exif


STRIP: Final[dict[str, Callable[[bytes], tuple[bytes, bytes]]]] = {
    "JPEG": _strip_jpeg,
    "PNG": _strip_png,
    "WEBP": _strip_webp,
}


def _flatten(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Return the pixels of an opened PNG or WebP in 8 bits, its transparency on white."""
    raw = image.tile[0].args if image.tile else None
    key = image.info.get("transparency")
    image.load()
    if image.mode == "I;16":
        # The high byte: Pillow's own conversion would clip.
        deep = np.asarray(image)
        return Image.fromarray((np.where(deep == key, 0xFFFF, deep) >> 8).astype(np.uint8))
    if raw == "RGB;16B" and key is not None:
        # Pillow keeps the high byte of each sample. Where it reads them as little-endian, it keeps the low one.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as low:
            low.tile = [low.tile[0]._replace(args="RGB;16L")]
            high_key, low_key = np.divmod(key, 256)
            mask = ((np.asarray(image) == high_key) & (np.asarray(low) == low_key)).all(axis=2)
        image.paste("white", mask=Image.fromarray(mask))
        return image
    if raw in GREY_SCALES and key is not None:
        image.info["transparency"] = key * GREY_SCALES[raw]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba)
        return background
    return image if image.mode == "L" else image.convert("RGB")


def _read_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 if it has none or is damaged.

    Pillow would copy every value of the first directory, as large as each claims to be.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    if (order := BYTE_ORDERS.get(tiff[:4])) is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, form, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION and form == 3:  # SHORT
                return int(value)
    except struct.error:
        pass
    return 1
