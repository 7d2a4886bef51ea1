"""Read snapshots: the accepted samples, content-addressed: shards of images, one index, and one manifest.

The id of a snapshot is the sha256 of its canonical manifest, which steps pass on. The index is a Parquet table of all
samples without the bytes of their images. It names the shard and the position of each, so that a process reads what it
needs: columns of the index, or single samples from the shards. Every object's digest is verified where it is read.

A snapshot of format 1 has no index. Its shards, one split each, hold the columns of the index too.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardcase.errors import HardcaseError, InputError
from hardcase.formats import SNAPSHOT_FORMAT, check_format
from hardcase.store.digest import bytes_digest, path_digest
from hardcase.store.store import Store, object_name, open_store
from hardcase.task.sample import LETTERS, Sample

# What a snapshot holds of an image besides its bytes.
STATS: Final = pa.struct(
    [
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),  # of an original
        ("mean", pa.float64()),
        ("std", pa.float64()),
    ]
)
FIELDS: Final = [
    ("id", pa.string()),
    ("row", pa.int64()),
    ("aspect", pa.string()),
    ("answer", pa.list_(pa.string())),
    ("reasoning", pa.string()),
    ("split", pa.string()),
    ("group", pa.string()),
]
TABLE: Final = pa.schema([*FIELDS, ("images", pa.list_(STATS))])
INDEX: Final = pa.schema([*TABLE, ("shard", pa.int32()), ("position", pa.int32())])
SHARD: Final = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("images", pa.list_(pa.struct([("bytes", pa.binary())])))]
)
IMAGES: Final = "images.list.element"
SPLITS: Final = ("train", "eval")
OPEN_SHARDS: Final = 16
BATCH_ROWS: Final = 4096


class Snapshot:
    """A snapshot opened for reading; `id` is the sha256 of its `manifest`."""

    def __init__(self, id: str, manifest: dict[str, Any], store: Store) -> None:
        self.id, self.manifest, self._store = id, manifest, store

    @classmethod
    def open(cls, manifest: Path, store: str) -> "Snapshot":
        """Open the snapshot of a manifest file, with its objects in `store`.

        Raises:
            InputError: the file is not a manifest.
            NewerFormatError: a newer hardcase wrote it.
        """
        try:
            content = json.loads(manifest.read_bytes())
            check_format(content["schema"], SNAPSHOT_FORMAT, str(manifest))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{manifest}: not a snapshot manifest; make one with `hardcase ingest`") from error
        return cls(path_digest(manifest), content, open_store(store))

    def count(self, split: str) -> int:
        """Return the number of samples in `split`."""
        return int(self.manifest["splits"][split])

    def open_samples(self, split: str, *, reasoning: bool = False) -> "Samples":
        """Return the samples of `split` in order, read one at a time, with their chains of thought if asked for."""
        columns = ["id", "aspect", "answer", "group", f"{IMAGES}.width", f"{IMAGES}.height", "shard", "position"]
        columns += ["reasoning"] if reasoning else []
        shards = [(shard["sha256"], shard["bytes"]) for shard in self.manifest["shards"]]
        if self._store.fits_locally(sum(size for _, size in shards)):
            return Samples(self._read_index(columns, split), self._store, shards)
        return RangedSamples(self._read_index([*columns, f"{IMAGES}.sha256"], split), self._store, shards)

    def read_labels(self, split: str) -> list[dict[str, Any]]:
        """Return id, aspect, answer and group of the samples of `split`, in order."""
        labels: list[dict[str, Any]] = self._read_index(["id", "aspect", "answer", "group"], split).to_pylist()
        return labels

    def read_table(self) -> pa.Table:
        """Return all rows without the bytes of their images."""
        return self._read_index([*(name for name, _ in FIELDS), *(f"{IMAGES}.{field.name}" for field in STATS)])

    def _read_index(self, columns: Sequence[str], split: str = "") -> pa.Table:
        """Return columns of the index, of all samples or those of one split."""
        selected = list(dict.fromkeys([*columns, "split"]))
        if self.manifest["schema"] == 1:
            table = self._read_first_format(selected, split)
        else:
            table = _read_columns(self._store.hold_object(self.manifest["index"]["sha256"]), selected, split)
        return table.combine_chunks() if "split" in columns else table.drop_columns("split").combine_chunks()

    def _read_first_format(self, columns: Sequence[str], split: str) -> pa.Table:
        """Build columns of the index from shards of format 1, which hold one split each."""
        tables = list[pa.Table]() if self.manifest["shards"] else [INDEX.empty_table()]
        for number, shard in enumerate(self.manifest["shards"]):
            own = [column for column in columns if column not in ("shard", "position")]
            table = _read_columns(self._store.hold_object(shard["sha256"]), own, split)
            if "shard" in columns:
                table = table.append_column("shard", pa.array(np.full(table.num_rows, number, dtype=np.int32)))
            if "position" in columns:
                table = table.append_column("position", pa.array(np.arange(table.num_rows, dtype=np.int32)))
            tables.append(table)
        return pa.concat_tables(tables)


def is_held_out(group: str, share: float) -> bool:
    """Return whether a group is among the `share` that is held out, the same in every run and of every snapshot."""
    return int(bytes_digest(f"hold out {group}".encode())[:16], 16) < share * 2**64


class Samples(Sequence[Sample]):
    """Samples of a snapshot. A table holds about 160 bytes of each, and its images are read from a local shard.

    Reading is safe in forked processes. A shard is verified when a process first opens it.
    """

    def __init__(self, table: pa.Table, store: Store, shards: Sequence[tuple[str, int]]) -> None:
        self.table, self._store, self._shards = table, store, shards  # sha256 and bytes of each shard
        self._verified = set[str]()
        self._open_recent = lru_cache(OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> "Samples": ...
    def __getitem__(self, at: int | slice) -> "Sample | Samples":
        if isinstance(at, slice):
            return self.select(range(len(self))[at])
        (row,) = self.table.slice(range(len(self))[at], 1).to_pylist()
        digests = [image.get("sha256", "") for image in row["images"]]
        images = StoredImages(self, row["shard"], row["position"], digests)
        sizes = tuple((image["width"], image["height"]) for image in row["images"])
        truth, reasoning = frozenset(row["answer"]), row.get("reasoning")
        return Sample(row["id"], row["aspect"], truth, reasoning, row["group"], images, sizes)

    def select(self, indices: Iterable[int]) -> "Samples":
        """Return the samples at some indices."""
        return type(self)(self.table.take(pa.array(indices, pa.int64())), self._store, self._shards)

    def select_shard(self, shard: str, window: int) -> tuple[int, "Samples"]:
        """Return the samples of one shard of these, and how many precede them.

        `3/8` is the third of eight shards, which divide windows of so many samples.
        """
        (number, shards), windows = map(int, shard.split("/")), -(-len(self) // window)
        start, stop = (windows * end // shards * window for end in (number - 1, number))
        return start, self[start:stop]

    def hold_out(self, share: float) -> "tuple[Samples, Samples]":
        """Return the samples that may train, and those of the groups that are held out for validation."""
        if not share:
            return self, self[:0]
        held_out = np.array([is_held_out(group, share) for group in self.read_column("group")], dtype=bool)
        return self.select(np.flatnonzero(~held_out)), self.select(np.flatnonzero(held_out))

    def select_annotated(self) -> "Samples":
        """Return the samples with an annotated chain of thought."""
        return self.select(np.flatnonzero(self.table["reasoning"].is_valid()))

    def read_column(self, name: str) -> list[Any]:
        """Return a column of the index."""
        values: list[Any] = self.table[name].to_pylist()
        return values

    def read_images(self, shard: int, position: int, digests: Sequence[str]) -> tuple[bytes, ...]:
        """Return the five encoded images, of those sha256, at a position of a shard."""
        file, starts = self._open_recent(shard)
        group = bisect_right(starts, position) - 1
        column = file.read_row_group(group, columns=[f"{IMAGES}.bytes"], use_threads=False)["images"]
        return tuple(image["bytes"] for image in column[position - starts[group]].as_py())

    def _open_shard(self, shard: int) -> tuple[pq.ParquetFile, list[int]]:
        """Return a shard's file, and the position of the first row of each of its row groups."""
        file = self._open_file(*self._shards[shard])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return file, [0, *np.cumsum(rows[:-1]).tolist()]

    def _open_file(self, digest: str, _size: int) -> pq.ParquetFile:
        path = self._store.hold_object(digest, verified=digest in self._verified)
        self._verified.add(digest)
        return pq.ParquetFile(path)


class RangedSamples(Samples):
    """Samples whose shards on S3 are too large for the cache: single ones are fetched, and each image is verified."""

    def read_images(self, shard: int, position: int, digests: Sequence[str]) -> tuple[bytes, ...]:
        """Return the five encoded images, of those sha256, at a position of a shard."""
        images = super().read_images(shard, position, digests)
        if [bytes_digest(image) for image in images] != list(digests):
            raise HardcaseError(f"{object_name(self._shards[shard][0])} was altered; remove it and ingest again")
        return images

    def _open_file(self, digest: str, size: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._store.open_ranges(digest, size))


class StoredImages(Sequence[bytes]):
    """The five encoded images of a sample, which are read when they are first used."""

    def __init__(self, samples: Samples, shard: int, position: int, digests: Sequence[str]) -> None:
        self._samples, self._place, self._digests = samples, (shard, position), digests

    @cached_property
    def _contents(self) -> tuple[bytes, ...]:
        return self._samples.read_images(*self._place, self._digests)

    def __len__(self) -> int:
        return 1 + len(LETTERS)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, at: int | slice) -> bytes | tuple[bytes, ...]:
        return self._contents[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._place)


def _read_columns(path: Path, columns: Sequence[str], split: str) -> pa.Table:
    """Read columns of a table, of which `split` is one, a few rows at a time: all of them, or those of one split."""
    with pq.ParquetFile(path) as file:
        batches = [
            batch.filter(pc.equal(batch["split"], split)) if split else batch
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)
        ]
        return pa.Table.from_batches(batches) if batches else file.read(columns=list(columns))
