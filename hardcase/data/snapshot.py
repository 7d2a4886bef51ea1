"""Read snapshots: the accepted samples, content-addressed, as Parquet shards in the store and one manifest.

The id of a snapshot is the sha256 of its canonical manifest. Steps pass on the manifest. Shards are fetched from the
store, and their digests verified, wherever they are read.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hardcase.errors import InputError
from hardcase.formats import SNAPSHOT_FORMAT, check_format
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, open_store
from hardcase.task.sample import Sample

IMAGE: Final = pa.struct(
    [
        ("bytes", pa.binary()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),
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
SCHEMA: Final = pa.schema([*FIELDS, ("images", pa.list_(IMAGE))])
SPLITS: Final = ("train", "eval")


class Snapshot:
    """A snapshot opened for reading; `id` is the sha256 of its `manifest`."""

    def __init__(self, id: str, manifest: dict[str, Any], store: Store) -> None:
        self.id, self.manifest, self._store = id, manifest, store

    @classmethod
    def open(cls, manifest: Path, store: str) -> "Snapshot":
        """Open the snapshot of a manifest file, with its shards in `store`.

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

    def iterate(self, split: str) -> Iterator[Sample]:
        """Yield the samples of `split`, one shard in memory at a time."""
        for shard in self._read_shards(split):
            for batch in shard.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    images, truth = tuple(image["bytes"] for image in row["images"]), frozenset(row["answer"])
                    yield Sample(row["id"], row["aspect"], truth, row["reasoning"], row["group"], images)

    def load(self, split: str) -> list[Sample]:
        """Return the samples of `split` with their encoded images, all in memory."""
        return list(self.iterate(split))

    def load_shard(self, split: str, shard: str) -> tuple[int, list[Sample]]:
        """Return the samples of one shard of `split` (`3/8` is the third of eight), and how many precede them."""
        (number, shards), rows = map(int, shard.split("/")), self.count(split)
        start, stop = rows * (number - 1) // shards, rows * number // shards
        return start, list(islice(self.iterate(split), start, stop))

    def read_labels(self, split: str) -> list[dict[str, Any]]:
        """Return id, aspect, answer and group of the samples of `split`, in order."""
        columns = ["id", "aspect", "answer", "group"]
        return [row for shard in self._read_shards(split) for row in shard.read(columns=columns).to_pylist()]

    def read_table(self) -> pa.Table:
        """Return all rows without the bytes of their images."""
        described = [f"images.list.element.{field.name}" for field in IMAGE if field.name != "bytes"]
        columns = [name for name, _ in FIELDS] + described
        return pa.concat_tables(shard.read(columns=columns) for split in SPLITS for shard in self._read_shards(split))

    def _read_shards(self, split: str) -> Iterator[pq.ParquetFile]:
        digests = [shard["sha256"] for shard in self.manifest["shards"] if shard["split"] == split]
        for data in self._store.get_objects(digests):
            yield pq.ParquetFile(pa.BufferReader(data))
