"""ingest: from a user's source to a content-addressed snapshot; what breaks a rule goes to quarantine, with its reason.

Two passes. The first reads every row and picture and keeps small facts of each; the second reads the accepted pictures
again, finds them unchanged, and writes them into shards. Memory holds the facts and one shard.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
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
TAKEN = "snapshot:"
PROCEDURAL = {"samples": int, "seed": int, "views_a_product": int}
LEVELS = np.arange(256)
logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """What the snapshot says of a picture."""

    sha256: str
    format: str
    width: int
    height: int
    phash: str
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of the source.

    Attributes:
        snapshot_id: sha256 of the manifest.
        accepted: rows in the snapshot.
        quarantined: rows in quarantine, by reason.
    """

    snapshot_id: str
    accepted: int
    quarantined: dict[str, int]


def execute(plan: Mapping[str, Any]) -> str:
    """Read the plan's source into a snapshot, and return the sha256 of the step's attestation."""
    with running("ingest", plan, {}) as work:
        config, (source, _) = IngestConfig.model_validate(work.config), plan["parameters"]["source"]
        run(source, plan["store"], config, work.output("snapshot"), work.output("quarantine"), work.folder)
    return work.attestation


def run(source: str, store: str, config: IngestConfig, snapshot: Path, quarantine: Path, scratch: Path) -> IngestResult:
    """Take a source in.

    Args:
        source: `procedural://?samples=…&seed=…`, a folder or a manifest file, on this machine or on S3; `snapshot:` and
            the id of one that is in the store already.
        store: where shards are kept.
        config: shares, distances, sizes.
        snapshot: the manifest, written last.
        quarantine: Parquet table, written always.
        scratch: folder for pictures that are drawn or fetched.

    Raises:
        InputError: no source, no rows, or too many bad ones.
        HardcaseError: a picture changed while it was read, or a worker died.
    """
    if source.startswith(TAKEN):
        return _taken_over(source.removeprefix(TAKEN), store, snapshot, quarantine)
    opened = Source(_materialised(source, scratch))
    rows: dict[int, tuple[Row, list[Picture]]] = {}
    bad: list[BadRow] = []
    for each, pictures in _looked_at(opened):
        if isinstance(pictures, BadRow):
            bad.append(pictures)
        elif isinstance(each, Row):
            rows[each.row] = each, pictures
    if opened.unknown_keys:
        logger.warning("source %s: keys ignored: %s", source, ", ".join(sorted(opened.unknown_keys)))
    if (total := len(rows) + len(bad)) == 0:
        write_quarantine([], quarantine)
        raise InputError(f"source {source}: its manifest has no rows; hand in at least one sample")
    facts = [_facts(each, pictures) for each, pictures in rows.values()]
    places, refused = accept_rows(
        facts,
        config.eval_share,
        config.group_distance,
        split_named=opened.split_named,
        group_named=opened.group_named,
    )
    bad += refused
    reasons = write_quarantine(bad, quarantine)
    if len(bad) / total > config.max_bad_share or not places:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise InputError(
            f"source {source}: {len(bad)} of {total} rows are bad ({counts}); at most ingest.max_bad_share "
            f"{config.max_bad_share:g} may be, and one must be left; see {quarantine}, mend them or raise the share"
        )
    accepted = [(*rows[number], place) for number, place in sorted(places.items())]
    kept = open_store(store)
    shards = [shard for split in SPLITS for shard in _shards(opened, accepted, split, config.shard_bytes, kept)]
    manifest = canonical_json(
        {
            "schema": 1,
            "rows": len(accepted),
            "splits": {split: sum(place.split == split for *_, place in accepted) for split in SPLITS},
            "shards": shards,
            "unknown_keys": sorted(opened.unknown_keys),
        }
    )
    kept.put_object(manifest)
    write_atomically(snapshot, manifest)
    return IngestResult(bytes_digest(manifest), len(accepted), reasons)


def _taken_over(snapshot_id: str, store: str, snapshot: Path, quarantine: Path) -> IngestResult:
    """A snapshot made before, found whole."""
    kept = open_store(store)
    try:
        write_atomically(snapshot, kept.get_object(snapshot_id))
    except HardcaseError as error:
        raise InputError(f"source {TAKEN}{snapshot_id}: no such snapshot: {error}") from error
    opened = Snapshot.open(snapshot, store)
    for shard in track(opened.manifest["shards"], "checking shards"):
        kept.check_object(shard["sha256"])
    write_quarantine([], quarantine)
    return IngestResult(snapshot_id, opened.manifest["rows"], {})


def _materialised(source: str, scratch: Path) -> Path:
    """The path of the source; one on S3 is fetched first, a procedural one drawn."""
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
    shutil.rmtree(folder, ignore_errors=True)  # half-drawn pictures of a run that was stopped
    write_source(folder, **options)
    return folder


def _looked_at(source: Source) -> Iterator[tuple[Row | BadRow, list[Picture] | BadRow]]:
    """Every row with its pictures' facts, or with what is bad about it; in order, a chunk in memory at a time."""
    rows, done = source.read_rows(), 0
    with ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, CHUNK)):
            try:
                yield from zip(chunk, pool.map(partial(_look, source.read_image), chunk, chunksize=32), strict=True)
            except (BrokenProcessPool, MemoryError) as error:
                raise HardcaseError(
                    f"source {source.manifest}: a process reading the pictures of rows {chunk[0].row} to "
                    f"{chunk[-1].row} died, most likely for want of memory; make room, or take large pictures out"
                ) from error
            done += len(chunk)
            report("reading rows", done, done)


def _look(read: Callable[[str], bytes], row: Row | BadRow) -> list[Picture] | BadRow:
    if isinstance(row, BadRow):
        return row
    pictures = []
    for path in row.paths:
        try:
            data = read(path)
            image, kind = inspect_image(data, Path(path).suffix)
        except BadPath as error:
            return BadRow(row.row, row.id, error.reason, error.detail)
        except BadImage as error:
            return BadRow(row.row, row.id, Reason(error.reason), f"{path}: {error.detail}")
        pictures.append(_described(data, image, kind))
    return pictures


def _described(data: bytes, image: Image.Image, kind: str) -> Picture:
    light = image.convert("L")
    shares = np.array(light.histogram()) / (light.width * light.height)
    mean = float(shares @ LEVELS)
    return Picture(
        sha256=bytes_digest(data),
        format=kind,
        width=image.width,
        height=image.height,
        phash=np.packbits(imagehash.phash(light).hash).tobytes().hex(),
        mean=mean,
        std=float(np.sqrt(shares @ (LEVELS - mean) ** 2)),
    )


def _facts(row: Row, pictures: Sequence[Picture]) -> RowSummary:
    digests = [picture.sha256 for picture in pictures]
    return RowSummary(
        row=row.row,
        id=row.id,
        content=bytes_digest(repr((row.aspect, row.answer, row.reasoning, row.split, row.group, digests)).encode()),
        question=bytes_digest(repr((row.aspect, digests)).encode()),
        answer=row.answer,
        original=digests[0],
        phash=int(pictures[0].phash, 16),
        split=row.split,
        group=row.group,
    )


def _shards(
    source: Source,
    accepted: Sequence[tuple[Row, list[Picture], Assignment]],
    split: str,
    shard_bytes: int,
    store: Store,
) -> Iterator[dict[str, Any]]:
    """Write the rows of `split` into the store, shard by shard."""
    chosen = [each for each in accepted if each[2].split == split]
    held: list[dict[str, Any]] = []
    size = 0
    for row, pictures, place in track(chosen, f"writing {split} shards"):
        images = []
        for path, picture in zip(row.paths, pictures, strict=True):
            data = _again(source, path, picture)
            images.append({"bytes": data, **picture._asdict()})
            size += len(data)
        held.append(
            {
                "id": row.id,
                "row": row.row,
                "aspect": row.aspect,
                "answer": list(row.answer),
                "reasoning": row.reasoning,
                "split": split,
                "group": place.group,
                "images": images,
            }
        )
        if size >= shard_bytes:
            yield _kept(held, split, store)
            held, size = [], 0
    if held:
        yield _kept(held, split, store)


def _again(source: Source, path: str, picture: Picture) -> bytes:
    try:
        data = source.read_image(path)
    except BadPath:
        data = b""
    if bytes_digest(data) != picture.sha256:
        raise HardcaseError(f"source {source.folder / path}: changed while it was read; run again")
    return data


def _kept(rows: list[dict[str, Any]], split: str, store: Store) -> dict[str, Any]:
    buffer = pa.BufferOutputStream()
    # Pictures are compressed already.
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="none", row_group_size=256)
    data = buffer.getvalue().to_pybytes()
    return {"sha256": store.put_object(data), "bytes": len(data), "rows": len(rows), "split": split}
