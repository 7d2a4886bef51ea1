"""What steps make, in the store: kept by kind, fetched once, and refused where it is not what it was."""

import json
import pickle
from pathlib import Path

import pytest

from hardcase.errors import HardcaseError
from hardcase.provenance.products import check_product, fetch_product, keep_product
from hardcase.provenance.statement import FILE, FOLDER, SNAPSHOT
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, object_name, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def made(tmp_path: Path, store: Store) -> dict[str, Path]:
    """A file, a folder and a snapshot, as steps write them."""
    folder = tmp_path / "outputs"
    (folder / "model" / "processor").mkdir(parents=True)
    (folder / "scores").write_text("{}")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "processor" / "vocabulary.txt").write_text("ok")
    shard = store.put_object(b"a shard")
    (folder / "snapshot").write_text(json.dumps({"shards": [{"sha256": shard, "split": "train"}]}))
    return {path.name: path for path in folder.iterdir()}


def file_of(store: Store, digest: str) -> Path:
    return Path(store.uri.removeprefix("file://")) / object_name(digest)


@pytest.mark.parametrize(("name", "kind"), [("scores", FILE), ("model", FOLDER), ("snapshot", SNAPSHOT)])
def test_a_product_comes_back_as_it_was(
    tmp_path: Path, store: Store, made: dict[str, Path], name: str, kind: str
) -> None:
    assert keep_product(store, made[name]) == (path_digest(made[name]), kind)
    back = fetch_product(store, path_digest(made[name]), kind, tmp_path / "back" / name)
    assert path_digest(back) == path_digest(made[name])
    check_product(store, path_digest(made[name]), kind)
    for path in (tmp_path / "store" / "objects").rglob("*/*"):
        path.unlink()
    assert fetch_product(store, path_digest(back), kind, back) == back, "what lies there already is not fetched again"


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [("scores", FILE, "scores"), ("model", FOLDER, "model/processor/vocabulary.txt"), ("snapshot", SNAPSHOT, "shard")],
)
def test_a_part_that_is_lost_is_named(
    tmp_path: Path, store: Store, made: dict[str, Path], name: str, kind: str, part: str
) -> None:
    digest, _ = keep_product(store, made[name])
    lost = store.put_object(b"a shard") if part == "shard" else path_digest(tmp_path / "outputs" / part)
    file_of(store, lost).unlink()
    with pytest.raises(HardcaseError, match=f"{lost} is missing"):
        check_product(store, digest, kind)


def test_a_folder_cut_short_by_a_kill_is_fetched_anew(tmp_path: Path, store: Store, made: dict[str, Path]) -> None:
    digest, kind = keep_product(store, made["model"])
    half = tmp_path / "back"
    half.mkdir()
    (half / "config.json").write_text("{")
    assert path_digest(fetch_product(store, digest, kind, half)) == digest


def test_a_folder_with_a_pickle_is_not_fetched(tmp_path: Path, store: Store, made: dict[str, Path]) -> None:
    (made["model"] / "training_args.bin").write_bytes(pickle.dumps({}))
    digest, kind = keep_product(store, made["model"])
    with pytest.raises(HardcaseError, match="pickle"):
        fetch_product(store, digest, kind, tmp_path / "back")
    assert not (tmp_path / "back").exists()
