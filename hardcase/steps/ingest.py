"""ingest: from a user's source to a content-addressed snapshot; rows that break a rule are quarantined with a reason.

The rows are read by blocks, each once, in as many processes as there are cores: `hardcase.data.blocks`. Then the rows
with valid images are compared with each other on disk, and the index of the accepted ones is written. Memory does not
grow with the source. A stopped ingest continues with the blocks that it has not read.
"""

import ctypes
import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import joblib
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.config import IngestConfig
from hardcase.data.accept import Acceptance, Assignment, RowSummary
from hardcase.data.blocks import BlockDetails, BlockReader, read_details, read_rows
from hardcase.data.files import open_source
from hardcase.data.quarantine import SCHEMA as QUARANTINE
from hardcase.data.quarantine import BadRow, Reason, write_quarantine
from hardcase.data.snapshot import INDEX, Snapshot
from hardcase.data.source import MAX_UNKNOWN, STORED, Block, Source, split_sources
from hardcase.errors import HardcaseError, InputError
from hardcase.formats import SNAPSHOT_FORMAT
from hardcase.lifetime import die_with_parent
from hardcase.progress import report, track
from hardcase.runtime.processes import in_shards
from hardcase.runtime.running import running
from hardcase.store.digest import bytes_digest, canonical_json, path_digest
from hardcase.store.store import Store, open_store, write_atomically

ACCEPTANCE = "rows.sqlite"
PROCEDURAL = {"samples": int, "seed": int, "views_a_product": int}
INDEX_BLOCKS = 64  # in a row group of the index
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 2**26  # of <malloc.h>
LARGE_SHARE = 0.1  # of the rows; a larger group is warned about
logger = logging.getLogger(__name__)


class IngestResult(NamedTuple):
    """Result of an ingest."""

    snapshot: str  # sha256 of the manifest
    accepted: int  # rows in the snapshot
    quarantined: dict[str, int]  # rows by reason
    splits: dict[str, int]  # rows by split
    groups: int | None  # None for a snapshot of format 1
    largest_group: int | None  # rows

    @classmethod
    def of_manifest(cls, manifest: bytes, quarantined: dict[str, int]) -> "IngestResult":
        """Return the result that a manifest describes."""
        content = json.loads(manifest)
        groups = content.get("groups"), content.get("largest_group")
        return cls(bytes_digest(manifest), content["rows"], quarantined, content["splits"], *groups)


def execute(plan: Mapping[str, Any]) -> str:
    """Read the plan's source into a snapshot, and return the sha256 of the step's attestation."""
    with running("ingest", plan, {}) as work:
        config, (source, _) = IngestConfig.model_validate(work.config), plan["parameters"]["source"]
        written, division = (work.outputs / "snapshot", work.outputs / "quarantine"), (plan["shards"], plan["nodes"])
        run(source, plan["store"], config, *written, work.folder, *map(int, division))
    return work.attestation


def run(
    source: str,
    store: str,
    config: IngestConfig,
    snapshot: Path,
    quarantine: Path,
    scratch: Path,
    shards: int = 1,
    nodes: int = 1,
) -> IngestResult:
    """Read a source into a snapshot; `quarantine` is always written, the manifest at `snapshot` last.

    The source is `procedural://?samples=…&seed=…`, a folder or a manifest file, on this machine or on S3, several of
    these URIs with spaces between them, or `snapshot:` and the id of a snapshot in the store. Images that are drawn go
    to `scratch`, and so do the blocks that are read: a run that was stopped continues there. Several nodes divide the
    blocks into shards, and see `scratch`.
    """
    if split_sources(source)[0].startswith(STORED):
        return _reuse_snapshot(source.removeprefix(STORED), store, snapshot, quarantine)
    given = {"source": source, "store": store, "config": config}
    folders = in_shards(read_shard, shards, nodes, scratch, "blocks", "ingest", **given)
    tables = sorted((path for folder in folders for path in folder.glob("*.parquet")), key=lambda path: int(path.stem))
    result = _merge(tables, source, open_store(store), config, snapshot, quarantine, scratch)
    (scratch / ACCEPTANCE).unlink()
    for folder in folders:
        shutil.rmtree(folder.parent)  # another run here may read another source
    return result


def read_shard(source: str, store: str, config: IngestConfig, shard: str, scratch: Path, blocks: Path) -> None:
    """Read one shard (`i/n`) of the blocks of a source into the folder `blocks`; `scratch` is for what is drawn."""
    local, (number, shards) = open_store(store).local, map(int, shard.split("/"))
    blocks.mkdir(parents=True, exist_ok=True)
    tasks, sources, rows = list[tuple[BlockReader, Block]](), split_sources(source), 0
    for at, name in enumerate(sources, start=1):
        folder, prefix = (scratch / f"source-{at}", f"{at}/") if len(sources) > 1 else (scratch, "")
        folder.mkdir(exist_ok=True)
        manifest, files = open_source(_draw(name, folder), folder)
        before = (len(tasks), rows, prefix)
        reader = BlockReader(manifest, files, blocks, config.shard_bytes, "" if local else store, *before)
        listed = Source(manifest).list_blocks()
        tasks += [(reader, block) for block in listed]
        rows += sum(block.rows for block in listed)
    own = tasks[len(tasks) * (number - 1) // shards : len(tasks) * number // shards]
    _read_blocks(own, source, spawned=not local or "s3://" in source)


def _read_blocks(tasks: Sequence[tuple[BlockReader, Block]], source: str, *, spawned: bool) -> None:
    rows, done = sum(block.rows for _, block in tasks), 0
    # Clients of S3 do not work in a forked process.
    context = multiprocessing.get_context("spawn" if spawned else "fork")
    workers = min(joblib.cpu_count(), max(len(tasks), 1))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            pending = {pool.submit(reader.read, block): block for reader, block in tasks}
            for future in as_completed(pending):
                block = pending.pop(future)
                future.result()
                done += block.rows
                report("reading rows", done, rows)
        except (BrokenProcessPool, MemoryError) as error:
            raise HardcaseError(
                f"source {source}: a process that reads images died near row {block.first}, most likely because memory "
                "ran out; free memory, or remove large images"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    die_with_parent()
    # Keep the memory of an image for the next one: the kernel's pages for each cost a tenth of the time.
    with suppress(AttributeError):  # of the GNU C library
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, KEPT_BYTES)


def _merge(
    tables: Sequence[Path],
    source: str,
    store: Store,
    config: IngestConfig,
    snapshot: Path,
    quarantine: Path,
    scratch: Path,
) -> IngestResult:
    """Accept rows, and write the quarantine, the shards, the index and the manifest."""
    folders = sorted({table.parent for table in tables})
    details = [read_details(table) for table in tables]
    unknown_keys = sorted({key for block in details for key in block.unknown_keys})[:MAX_UNKNOWN]
    if unknown_keys:
        logger.warning("source %s: keys ignored: %s", source, ", ".join(unknown_keys))
    with closing(Acceptance(scratch / ACCEPTANCE)) as acceptance:
        for table in track(tables, "comparing rows"):
            rows = read_rows(table).to_pylist()
            acceptance.add(_summarise(row) for row in rows if row["reason"] is None)
            acceptance.refuse(BadRow(*map(row.get, QUARANTINE.names)) for row in rows if row["reason"])
        acceptance.decide(
            config.eval_share,
            config.group_distance,
            split_named=any(block.split_named for block in details),
            group_named=any(block.group_named for block in details),
        )
        reasons, counts = write_quarantine(acceptance.list_quarantined(), quarantine), acceptance.count_groups()
        accepted = sum(counts.splits.values())
        _require_rows(source, accepted, reasons, config.max_bad_share, quarantine)
        if counts.largest > LARGE_SHARE * accepted and counts.groups > 1:
            logger.warning(
                "source %s: the largest group has %d of %d rows, all in one split; set `group` in the rows, or lower "
                "ingest.group_distance",
                *(source, counts.largest, accepted),
            )
        index = _write_index(tables, details, acceptance.list_assignments(), scratch / "index.parquet")
    shards = [shard for block in details for shard in block.shards]
    for shard in track(shards, "storing shards"):
        for folder in folders:
            if (path := folder / shard["sha256"]).exists():
                store.put_file(path, shard["sha256"])
    entry = {"sha256": path_digest(index), "bytes": index.stat().st_size}
    store.put_file(index, str(entry["sha256"]))
    manifest = canonical_json(
        {
            "schema": SNAPSHOT_FORMAT,
            "rows": accepted,
            "splits": counts.splits,
            "groups": counts.groups,
            "largest_group": counts.largest,
            "index": entry,
            "shards": shards,
            "unknown_keys": unknown_keys,
        }
    )
    store.put_object(manifest)
    write_atomically(snapshot, manifest)
    return IngestResult.of_manifest(manifest, reasons)


def _require_rows(source: str, accepted: int, reasons: Mapping[str, int], share: float, quarantine: Path) -> None:
    """Raise `InputError` if no row is accepted, or too many are bad.

    Where several sources are merged, a sample that occurs in two of them counts once and is not bad.
    """
    repeated = reasons.get(Reason.DUPLICATE_SAMPLE, 0) if len(split_sources(source)) > 1 else 0
    if (total := accepted + (bad := sum(reasons.values()) - repeated)) == 0:
        raise InputError(f"source {source}: its manifest has no rows; hand in at least one sample")
    if bad / total > share or not accepted:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        (first,) = next(pq.ParquetFile(quarantine).iter_batches(1)).to_pylist()
        example = f"first row {first['row']}: {first['reason']}, {first['detail']}"
        raise InputError(
            f"source {source}: {bad} of {total} rows are bad ({counts}), {example}; at most ingest.max_bad_share "
            f"{share:g} may be, and one must be left; see {quarantine}, fix them or raise the share"
        )


def _summarise(row: Mapping[str, Any]) -> RowSummary:
    digests, answer = [image["sha256"] for image in row["images"]], tuple(row["answer"])
    content = (row["aspect"], answer, row["reasoning"], row["split"], row["group"], digests)
    return RowSummary(
        row=row["row"],
        id=row["id"],
        content=bytes_digest(repr(content).encode()),
        question=bytes_digest(repr((row["aspect"], digests)).encode()),
        answer=" ".join(answer),
        original=digests[0],
        phash=row["images"][0]["phash"],
        thumbnail=row["thumbnail"],
        split=row["split"],
        group=row["group"],
    )


def _write_index(
    tables: Sequence[Path], details: Sequence[BlockDetails], assignments: Iterator[Assignment], path: Path
) -> Path:
    """Write the index of the accepted rows, whose shards are counted over all blocks."""
    pending, shards, assignment = list[pa.Table](), 0, next(assignments, None)
    with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
        for number, (table, block) in enumerate(zip(tables, details, strict=True), start=1):
            rows, own = read_rows(table), list[Assignment]()
            last = rows["row"][-1].as_py() if rows.num_rows else 0
            while assignment and assignment.row <= last:
                own.append(assignment)
                assignment = next(assignments, None)
            chosen = rows.filter(pc.is_in(rows["row"], pa.array([row.row for row in own], pa.int64())))
            columns = {name: chosen[name] for name in INDEX.names} | {
                "split": pa.array([row.split for row in own], pa.string()),
                "group": pa.array([row.group for row in own], pa.string()),
                "shard": pc.add(chosen["shard"], pa.scalar(shards, pa.int32())),
            }
            pending.append(pa.table(columns, INDEX))
            shards += len(block.shards)
            if number % INDEX_BLOCKS == 0 or number == len(tables):
                writer.write_table(pa.concat_tables(pending).combine_chunks())
                pending = []
    return path


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
    return IngestResult.of_manifest(snapshot.read_bytes(), {})


def _draw(source: str, scratch: Path) -> str:
    """Return the URI or path of a source; a procedural one is drawn."""
    if not source.startswith("procedural:"):
        return source
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
    return str(folder)
