"""Work divided into shards is whole again afterwards."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardcase.config import IngestConfig
from hardcase.data.completions import Completion, merge_completions, read_completions, write_completions
from hardcase.data.snapshot import Snapshot
from hardcase.errors import HardcaseError
from hardcase.steps.ingest import run as ingest


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("snapshot")
    (folder / "scratch").mkdir()
    manifest, store = folder / "manifest.json", (folder / "store").as_uri()
    config = IngestConfig(eval_share=0.5)
    ingest("procedural://?samples=11&seed=2", store, config, manifest, folder / "quarantine", folder / "scratch")
    return Snapshot.open(manifest, store)


@pytest.mark.parametrize("shards", [1, 2, 3, 40])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_shards_are_all_samples_once_in_order(snapshot: Snapshot, split: str, shards: int) -> None:
    samples = snapshot.open_samples(split)
    parts = [samples.select_shard(f"{number}/{shards}", window=2) for number in range(1, shards + 1)]
    whole = [sample.id for sample in samples]
    assert [sample.id for _, part in parts for sample in part] == whole
    assert [before for before, _ in parts] == [sum(len(p) for _, p in parts[:n]) for n in range(shards)]
    assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 3
    assert all(before % 2 == 0 for before, part in parts if part), "a window is in one shard"
    assert [row["id"] for row in snapshot.read_labels(split)] == whole


def test_completions_come_back_by_shard_and_none_is_missing_or_another(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    write_completions(
        ["a", "b"], [[Completion("x"), Completion("y", cut=True)], [Completion("z"), Completion("")]], first
    )
    write_completions(["c"], [[Completion("é"), Completion("w")]], second)
    assert read_completions([first, second], ["a", "b", "c"]) == [
        [Completion("x"), Completion("y", cut=True)],
        [Completion("z"), Completion("")],
        [Completion("é"), Completion("w")],
    ]
    for shards in ([second, first], [first], [first, first, second]):
        with pytest.raises(HardcaseError, match="run the step again"):
            read_completions(shards, ["a", "b", "c"])


def test_completions_of_version_0_1_0_stay_readable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "texts": [["x", "y"], []]}), tmp_path / "1")
    assert read_completions([tmp_path / "1"], ["a", "b"]) == [[Completion("x"), Completion("y")], []]


@pytest.mark.parametrize("cuts", [[], [2], [0, 1, 3]])
def test_merged_shards_are_the_bytes_of_one(tmp_path: Path, cuts: list[int]) -> None:
    ids, texts = ["a", "b", "c"], [[Completion("x"), Completion("y", cut=True)], [Completion("")], [Completion("é")]]
    write_completions(ids, texts, tmp_path / "one")
    shards = [tmp_path / str(number) for number in range(len(cuts) + 1)]
    for start, stop, shard in zip([0, *cuts], [*cuts, 3], shards, strict=True):
        write_completions(ids[start:stop], texts[start:stop], shard)
    merge_completions(shards, tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "one").read_bytes()
