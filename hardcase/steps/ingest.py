"""ingest: from a user's source to a content-addressed snapshot; rows that break a rule are quarantined with a reason.

Two passes. The first reads every row and image and keeps small statistics of each. The second reads the accepted images
again, verifies that they are unchanged, and writes them into shards. Memory holds the statistics and one shard.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fftpack  # noqa: F401 — imagehash imports it when first used, which every worker would pay for
from PIL import Image

from hardcase.config import IngestConfig
from hardcase.data.accept import Assignment, RowSummary, accept_rows
from hardcase.data.images import BadImage, inspect_image
from hardcase.data.quarantine import BadRow, Reason, write_quarantine
from hardcase.data.remote import fetch_source
from hardcase.data.snapshot import SCHEMA, SPLITS, Snapshot
from hardcase.data.source import BadPath, Row, Source
from hardcase.errors import HardcaseError, InputError
from hardcase.progress import report, track
from hardcase.runtime.running import running
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store, open_store, parse_local_path, write_atomically

CHUNK = 512
STORED = "snapshot:"
PROCEDURAL = {"samples": int, "seed": int, "views_a_product": int}
LEVELS = np.arange(256)
logger = logging.getLogger(__name__)


class ImageStats(NamedTuple):
    """What the snapshot holds of an image besides its bytes."""

    sha256: str
    format: str
    width: int
    height: int
    phash: str
    mean: float
    std: float


class IngestResult(NamedTuple):
    """Result of an ingest: sha256 of the manifest, rows in the snapshot, and quarantined rows by reason."""

    snapshot_id: str
    accepted: int
    quarantined: dict[str, int]


def execute(plan: Mapping[str, Any]) -> str:
    """Read the plan's source into a snapshot, and return the sha256 of the step's attestation."""
    with running("ingest", plan, {}) as work:
        config, (source, _) = IngestConfig.model_validate(work.config), plan["parameters"]["source"]
        run(source, plan["store"], config, work.outputs / "snapshot", work.outputs / "quarantine", work.folder)
    return work.attestation


def run(source: str, store: str, config: IngestConfig, snapshot: Path, quarantine: Path, scratch: Path) -> IngestResult:
    """Read a source into a snapshot; `quarantine` is always written, the manifest at `snapshot` last.

    The source is `procedural://?samples=…&seed=…`, a folder or a manifest file, on this machine or on S3, or
    `snapshot:` and the id of a snapshot in the store. Images that are drawn or fetched go to `scratch`.
    """
    if source.startswith(STORED):
        return _reuse_snapshot(source.removeprefix(STORED), store, snapshot, quarantine)
    opened = Source(_materialise(source, scratch))
    rows: dict[int, tuple[Row, list[ImageStats]]] = {}
    bad: list[BadRow] = []
    for row, images in _inspect_rows(opened):
        if isinstance(images, BadRow):
            bad.append(images)
        elif isinstance(row, Row):
            rows[row.row] = row, images
    if opened.unknown_keys:
        logger.warning("source %s: keys ignored: %s", source, ", ".join(sorted(opened.unknown_keys)))
    if (total := len(rows) + len(bad)) == 0:
        write_quarantine([], quarantine)
        raise InputError(f"source {source}: its manifest has no rows; hand in at least one sample")
    assignments, refused = accept_rows(
        [_summarise(row, images) for row, images in rows.values()],
        config.eval_share,
        config.group_distance,
        split_named=opened.split_named,
        group_named=opened.group_named,
    )
    bad += refused
    reasons = write_quarantine(bad, quarantine)
    if len(bad) / total > config.max_bad_share or not assignments:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise InputError(
            f"source {source}: {len(bad)} of {total} rows are bad ({counts}); at most ingest.max_bad_share "
            f"{config.max_bad_share:g} may be, and one must be left; see {quarantine}, fix them or raise the share"
        )
    accepted = [(*rows[number], assignment) for number, assignment in sorted(assignments.items())]
    opened_store = open_store(store)
    shards = [shard for split in SPLITS for shard in _write_shards(opened, accepted, split, config, opened_store)]
    manifest = canonical_json(
        {
            "schema": 1,
            "rows": len(accepted),
            "splits": {split: sum(assignment.split == split for *_, assignment in accepted) for split in SPLITS},
            "shards": shards,
            "unknown_keys": sorted(opened.unknown_keys),
        }
    )
    opened_store.put_object(manifest)
    write_atomically(snapshot, manifest)
    return IngestResult(bytes_digest(manifest), len(accepted), reasons)


def _reuse_snapshot(snapshot_id: str, store: str, snapshot: Path, quarantine: Path) -> IngestResult:
    opened_store = open_store(store)
    try:
        write_atomically(snapshot, opened_store.get_object(snapshot_id))
    except HardcaseError as error:
        raise InputError(f"source {STORED}{snapshot_id}: no such snapshot: {error}") from error
    opened = Snapshot.open(snapshot, store)
    for shard in track(opened.manifest["shards"], "checking shards"):
        opened_store.check_object(shard["sha256"])
    write_quarantine([], quarantine)
    return IngestResult(snapshot_id, opened.manifest["rows"], {})


def _materialise(source: str, scratch: Path) -> Path:
    """Return the path of the source; a remote one is fetched first, a procedural one drawn."""
    if source.startswith("s3://"):
        return fetch_source(source, scratch / "fetched")
    if not source.startswith("procedural:"):
        return parse_local_path(source)
    from hardcase.data.scenes import write_source

    parts = urlsplit(source)
    options: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        try:
            options[key] = PROCEDURAL[key](value)
        except (KeyError, ValueError) as error:
            known = ", ".join(PROCEDURAL)
            raise InputError(f"source {source}: {key}={value} is not understood; use numbers for {known}") from error
    options = {"samples": 2800, "seed": 0, **options}
    positive = options["samples"] >= 1 and options.get("views_a_product", 1) >= 1
    if parts.netloc or parts.path or not positive:
        raise InputError(
            f"source {source}: not understood; write procedural://?samples=2800&seed=0, at least one sample"
        )
    folder = scratch / "procedural"
    shutil.rmtree(folder, ignore_errors=True)  # half-drawn images of a run that was stopped
    write_source(folder, **options)
    return folder


def _inspect_rows(source: Source) -> Iterator[tuple[Row | BadRow, list[ImageStats] | BadRow]]:
    """Yield every row with the statistics of its images, or with its fault, in order, a chunk in memory at a time."""
    rows, done = source.read_rows(), 0
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, CHUNK)):
            try:
                inspect = partial(_inspect_row, source.read_image)
                yield from zip(chunk, pool.map(inspect, chunk, chunksize=32), strict=True)
            except (BrokenProcessPool, MemoryError) as error:
                raise HardcaseError(
                    f"source {source.manifest}: a process reading the images of rows {chunk[0].row} to "
                    f"{chunk[-1].row} died, most likely for want of memory; make room, or take large images out"
                ) from error
            done += len(chunk)
            report("reading rows", done, done)


def _inspect_row(read: Callable[[str], bytes], row: Row | BadRow) -> list[ImageStats] | BadRow:
    if isinstance(row, BadRow):
        return row
    images = []
    for path in row.paths:
        try:
            data = read(path)
            image, kind = inspect_image(data, Path(path).suffix)
        except BadPath as error:
            return BadRow(row.row, row.id, error.reason, error.detail)
        except BadImage as error:
            return BadRow(row.row, row.id, Reason(error.reason), f"{path}: {error.detail}")
        images.append(_measure(data, image, kind))
    return images


def _measure(data: bytes, image: Image.Image, kind: str) -> ImageStats:
    light = image.convert("L")
    shares = np.array(light.histogram()) / (light.width * light.height)
    mean = float(shares @ LEVELS)
    return ImageStats(
        sha256=bytes_digest(data),
        format=kind,
        width=image.width,
        height=image.height,
        phash=np.packbits(imagehash.phash(light).hash).tobytes().hex(),
        mean=mean,
        std=float(np.sqrt(shares @ (LEVELS - mean) ** 2)),
    )


def _summarise(row: Row, images: Sequence[ImageStats]) -> RowSummary:
    digests = [image.sha256 for image in images]
    return RowSummary(
        row=row.row,
        id=row.id,
        content=bytes_digest(repr((row.aspect, row.answer, row.reasoning, row.split, row.group, digests)).encode()),
        question=bytes_digest(repr((row.aspect, digests)).encode()),
        answer=row.answer,
        original=digests[0],
        phash=int(images[0].phash, 16),
        split=row.split,
        group=row.group,
    )


def _write_shards(
    source: Source,
    accepted: Sequence[tuple[Row, list[ImageStats], Assignment]],
    split: str,
    config: IngestConfig,
    store: Store,
) -> Iterator[dict[str, Any]]:
    """Write the rows of a split into the store, and yield the manifest's entry of each shard."""
    rows, size = list[dict[str, Any]](), 0
    chosen = [entry for entry in accepted if entry[2].split == split]
    for row, stats, assignment in track(chosen, f"writing {split} shards"):
        pairs = zip(row.paths, stats, strict=True)
        images = [{"bytes": _reread(source, path, image), **image._asdict()} for path, image in pairs]
        size += sum(len(image["bytes"]) for image in images)
        fields = {name: getattr(row, name) for name in ("id", "row", "aspect", "answer", "reasoning")}
        rows.append({**fields, "split": split, "group": assignment.group, "images": images})
        if size >= config.shard_bytes:
            yield _write_shard(rows, split, store)
            rows, size = [], 0
    if rows:
        yield _write_shard(rows, split, store)


def _reread(source: Source, path: str, image: ImageStats) -> bytes:
    try:
        data = source.read_image(path)
    except BadPath:
        data = b""
    if bytes_digest(data) != image.sha256:
        raise HardcaseError(f"source {source.folder / path}: changed while it was read; run again")
    return data


def _write_shard(rows: list[dict[str, Any]], split: str, store: Store) -> dict[str, Any]:
    buffer = pa.BufferOutputStream()
    # Images are compressed already.
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="none", row_group_size=256)
    data = buffer.getvalue().to_pybytes()
    return {"sha256": store.put_object(data), "bytes": len(data), "rows": len(rows), "split": split}
