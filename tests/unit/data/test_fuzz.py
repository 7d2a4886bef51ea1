"""Mutated images, manifests and tables either keep the rules or break one by name; nothing else comes out.

`make fuzz` runs these properties on ever new inputs for a bounded time, `make test-unit` on a few fixed ones.
"""

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hardcase.data.images import MAX_PIXELS, BadImage, decode_image, inspect_image
from hardcase.data.quarantine import BadRow, write_quarantine
from hardcase.data.source import Row, Source
from hardcase.errors import InputError
from hardcase.task.sample import ASPECTS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
MEASURED = pa.proxy_memory_pool(pa.default_memory_pool())
PROPERTIES: list[Callable[[], None]] = []


def bounded(check: Callable[[], None]) -> Callable[[], None]:
    """Run a property on fixed inputs, or on new ones for its share of the seconds."""
    examples = settings(
        max_examples=300 if SECONDS else 60,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(check)

    @wraps(check)
    def run() -> None:
        end = time.monotonic() + SECONDS / len(PROPERTIES)
        examples()
        while time.monotonic() < end:
            examples()

    PROPERTIES.append(check)
    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look for fixtures in its arguments
    return run


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


NOISE = np.random.default_rng(0).integers(0, 255, (6, 8, 4), dtype=np.uint8)
RGBA = Image.fromarray(NOISE).resize((48, 40), Image.Resampling.BICUBIC)
RGB = RGBA.convert("RGB")
EXIF = Image.Exif()
EXIF[0x0112] = 6
JPEGS = [
    encoded(RGB, "JPEG"),
    encoded(RGB, "JPEG", progressive=True, exif=EXIF),
    encoded(RGB, "JPEG", restart_marker_rows=1, subsampling=0, icc_profile=b"profile"),
    encoded(RGB.convert("L"), "JPEG", optimize=True, comment=b"note"),
    encoded(RGB.convert("CMYK"), "JPEG"),
    encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
]
PNGS = [
    *(encoded(RGBA.convert(mode), "PNG", exif=EXIF) for mode in ("RGB", "RGBA", "L", "LA", "1")),
    encoded(RGB.quantize(16), "PNG", bits=4, transparency=3),
    encoded(RGB.convert("L"), "PNG", transparency=7, icc_profile=b"profile"),
    encoded(Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257), "PNG"),
]
WEBPS = [
    encoded(RGB, "WEBP"),
    encoded(RGBA, "WEBP", exif=EXIF, icc_profile=b"profile"),
    encoded(RGBA, "WEBP", lossless=True, xmp=b"<x/>"),
]


def mutations(bases: list[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes of a base with some bytes flipped, cut out, zeroed, repeated or inserted."""

    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(bases))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, max(0, len(data) - 1)))
            end = at + draw(st.one_of(st.just(1), st.integers(1, 16), st.integers(1, 2**12)))
            kind = draw(st.sampled_from(["flip", "set", "cut", "zero", "repeat", "insert", "end"]))
            if kind == "flip":
                data = (
                    data[:at]
                    + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at : at + 1])
                    + data[at + 1 :]
                )
            elif kind == "set":
                value = draw(st.sampled_from([b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
                data = data[:at] + value + data[at + len(value) :]
            elif kind == "insert":
                data = data[:at] + draw(st.binary(max_size=40)) + data[at:]
            else:
                middle = {"cut": b"", "zero": bytes(len(data[at:end])), "repeat": data[at:end] * 2, "end": data[-12:]}
                data = data[:at] + middle[kind] + data[end:]
        return data

    return mutate()


def check_image(data: bytes) -> None:
    try:
        image, kind = inspect_image(data)
    except BadImage as error:
        assert error.detail
        assert error.detail.encode()
        return
    assert image.mode in ("RGB", "RGBX", "L")
    assert kind in ("JPEG", "PNG", "WEBP")
    assert image.width * image.height <= MAX_PIXELS
    decoded = decode_image(data)
    assert decoded.size == image.size
    assert decoded.tobytes() == decode_image(data).tobytes() == image.convert("RGB").tobytes()


@bounded
@given(mutations(JPEGS))
def test_a_mutated_jpeg_is_one_image_or_bad(data: bytes) -> None:
    check_image(data)


@bounded
@given(mutations(PNGS))
def test_a_mutated_png_is_one_image_or_bad(data: bytes) -> None:
    check_image(data)


@bounded
@given(mutations(PNGS), st.data())
def test_a_png_with_mutated_chunks_and_right_checksums_is_one_image_or_bad(_: bytes, draws: st.DataObject) -> None:
    data, parts, at = draws.draw(st.sampled_from(PNGS)), [], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : end - 4]))
        at = end
    victim = draws.draw(st.integers(0, len(parts) - 1))
    name, body = parts[victim]
    if name == b"IDAT" and draws.draw(st.booleans()):
        body = zlib.compress(draws.draw(mutations([zlib.decompress(body)])))
    elif body:
        body = draws.draw(mutations([body]))
    name = draws.draw(st.sampled_from([name, b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"PLTE", b"IHDR"]))
    parts.insert(victim + draws.draw(st.integers(0, 1)), (name, body))
    if draws.draw(st.booleans()):
        del parts[victim]
    check_image(data[:8] + b"".join(chunk(name, body) for name, body in parts))


@bounded
@given(mutations(WEBPS))
def test_a_mutated_webp_is_one_image_or_bad(data: bytes) -> None:
    check_image(data)


@bounded
@given(
    st.sampled_from([data for data in JPEGS if b"Exif" not in data]),
    st.lists(st.tuples(st.sampled_from([0xE0, 0xE1, 0xE2, 0xE5, 0xED, 0xEF, 0xFE]), st.binary(max_size=60))),
    st.binary(max_size=60),
)
def test_whatever_metadata_and_bytes_after_the_end_leave_the_pixels_of_a_jpeg(
    data: bytes, notes: list[tuple[int, bytes]], end: bytes
) -> None:
    heads = (b"", b"JFIF\0", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0", b"http://ns.adobe.com/xap/1.0/\0")
    segments = b""
    for number, (code, note) in enumerate(notes):
        body = heads[number % len(heads)] + note
        segments += b"\xff" + bytes([code]) + struct.pack(">H", len(body) + 2) + body
    assert decode_image(data[:2] + segments + data[2:] + end).tobytes() == decode_image(data).tobytes()


@bounded
@given(
    st.sampled_from([data for data in PNGS if b"eXIf" not in data]),
    st.lists(
        st.tuples(st.sampled_from([b"iCCP", b"zTXt", b"tEXt", b"pHYs", b"gAMA", b"prVt"]), st.binary(max_size=60))
    ),
    st.binary(max_size=60),
)
def test_whatever_metadata_and_bytes_after_the_end_leave_the_pixels_of_a_png(
    data: bytes, notes: list[tuple[bytes, bytes]], end: bytes
) -> None:
    chunks = b"".join(chunk(name, body) for name, body in notes)
    assert decode_image(data[:33] + chunks + data[33:] + end).tobytes() == decode_image(data).tobytes()


def check_rows(manifest: Path) -> list[Row | BadRow]:
    """Read a manifest twice; what comes out is in order, keeps the rules, and can be written."""
    source = Source(manifest)
    rows = [row for block in source.list_blocks() for row in source.read_block(block)]
    assert [row.row for row in rows] == sorted({row.row for row in rows})
    for row in rows:
        if isinstance(row, Row):
            assert row.aspect in ASPECTS
            assert set(row.answer) <= set("ABCD")
            assert len(row.images) == 5
            assert all(isinstance(image, bytes) or not image.startswith("/") for image in row.images)
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert sum(write_quarantine(bad, manifest.with_name("quarantine")).values()) == len(bad)
    json.dumps(sorted(source.unknown_keys)).encode()
    assert [row for block in source.list_blocks() for row in Source(manifest).read_block(block)] == rows
    return rows


GOOD: dict[str, Any] = {
    "id": "one",
    "aspect": "physical_shadow",
    "original": "o.png",
    "candidates": ["a.png", "b.png", "c.png", "d.png"],
    "answer": ["A", "C"],
    "reasoning": "A leans.",
    "split": "train",
    "group": "kettle",
}
LINES = [json.dumps({**GOOD, "id": number}).encode() + b"\n" for number in range(3)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@bounded
@given(mutations([b"".join(LINES), b"\xef\xbb\xbf" + LINES[0] + b"\r\n" + LINES[1][:-1]]))
def test_mutated_lines_are_rows_or_bad_rows(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        (manifest := Path(folder, "manifest.jsonl")).write_bytes(data)
        filled = [number for number, line in enumerate(data.split(b"\n"), 1) if line.strip(b" \t\r\n\xef\xbb\xbf")]
        assert {row.row for row in check_rows(manifest)} >= set(filled)


@bounded
@given(st.dictionaries(st.sampled_from([*GOOD, "note"]), JSON, max_size=4), st.booleans())
def test_rows_of_any_json_are_rows_or_bad_rows(changes: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps({**GOOD, **changes}, ensure_ascii=ascii_only)
    with TemporaryDirectory() as folder:
        (manifest := Path(folder, "manifest.jsonl")).write_bytes(text.encode(errors="surrogatepass"))
        assert len(check_rows(manifest)) == 1


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


IMAGE = {"bytes": b"\x89PNG\r\n\x1a\n" * 40, "path": "o.png"}
EMBEDDED = {**GOOD, "original": IMAGE, "candidates": [IMAGE] * 4}
TABLES = [
    parquet([GOOD] * 20, row_group_size=8),
    parquet([GOOD] * 20, compression="zstd", data_page_version="2.0", use_dictionary=False),
    parquet([{**GOOD, "id": number} for number in range(20)], compression="none", write_page_checksum=True),
    parquet([EMBEDDED] * 3, compression="gzip"),
    parquet([EMBEDDED] * 3, use_dictionary=False, write_statistics=False, compression="lz4"),
]


@bounded
@given(mutations(TABLES))
def test_a_mutated_parquet_file_is_rows_or_one_clear_error_and_takes_little_memory(data: bytes) -> None:
    pool = pa.default_memory_pool()
    with TemporaryDirectory() as folder:
        (manifest := Path(folder, "manifest.parquet")).write_bytes(data)
        pa.set_memory_pool(MEASURED)
        try:
            check_rows(manifest)
        except InputError as error:
            assert str(manifest) in str(error)
        finally:
            pa.set_memory_pool(pool)
    assert MEASURED.max_memory() < 2**26
