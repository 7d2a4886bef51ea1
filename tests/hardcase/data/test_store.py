"""The store: content by sha256, verified on every read."""

import hashlib
import threading
from pathlib import Path

import pytest

from hardcase.data.digest import path_digest
from hardcase.data.store import Store, local_path, open_store, write_whole
from hardcase.errors import HardcaseError, InputError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def kept(store: Store, digest: str) -> Path:
    return local_path(store.uri) / "objects" / digest[:2] / digest


def test_what_is_put_is_got_under_its_sha256(store: Store) -> None:
    for data in (b"", b"x", bytes(range(256)) * 5000):
        digest = store.put_object(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert store.get_object(digest) == data
        assert kept(store, digest).read_bytes() == data


def test_putting_twice_writes_once(store: Store) -> None:
    digest = store.put_object(b"x")
    before = kept(store, digest).stat()
    assert store.put_object(b"x") == digest
    assert kept(store, digest).stat().st_mtime_ns == before.st_mtime_ns


def test_many_writers_of_one_object_do_not_race(store: Store) -> None:
    data, found = b"y" * 10**6, []
    threads = [threading.Thread(target=lambda: found.append(store.put_object(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert store.get_object(found[0]) == data


@pytest.mark.parametrize("damage", [b"", b"altered", b"x" * 99])
def test_altered_bytes_are_never_handed_out_and_mended_by_putting_again(store: Store, damage: bytes) -> None:
    digest = store.put_object(b"right")
    kept(store, digest).write_bytes(damage)
    with pytest.raises(HardcaseError, match=f"{digest} was altered"):
        store.get_object(digest)
    store.put_object(b"right")
    assert store.get_object(digest) == b"right"


def test_a_missing_object_is_named(store: Store) -> None:
    digest = "0" * 64
    with pytest.raises(HardcaseError, match=f"{digest} is missing"):
        store.get_object(digest)


def test_what_cannot_be_read_or_kept_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    kept(store, digest).mkdir(parents=True)
    with pytest.raises(HardcaseError, match=digest):
        store.get_object(digest)
    kept(store, digest).rmdir()
    kept(store, digest).parent.rmdir()
    kept(store, digest).parent.write_text("a file in the way")
    with pytest.raises(HardcaseError, match=digest):
        store.put_object(b"x")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be made a folder"):
            open_store(str(place))


def test_a_folder_comes_back_whole_under_the_digest_of_its_path(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "ü 🫖.bin").write_bytes(bytes(1000))
    digest = store.put_folder(folder)
    assert digest == path_digest(folder)
    store.get_folder(digest, tmp_path / "back")
    assert path_digest(tmp_path / "back") == digest


@pytest.mark.parametrize("name", ["../out", "/tmp/hardcase-out", "a/../../out"])
def test_a_listing_cannot_write_outside_its_folder(store: Store, tmp_path: Path, name: str) -> None:
    inner = store.put_object(b"x")
    digest = store.put_object(f'{{"{name}":"{inner}"}}'.encode())
    with pytest.raises(HardcaseError, match="outside its folder"):
        store.get_folder(digest, tmp_path / "back")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_altered_file_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    digest = store.put_folder(tmp_path / "model")
    kept(store, hashlib.sha256(b"w").hexdigest()).write_bytes(b"v")
    with pytest.raises(HardcaseError, match="altered"):
        store.get_folder(digest, tmp_path / "back")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a/ü #1?x=2%20", "/a/ü #1?x=2%20"),
        ("file:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        (Path("/a/ü #1?").as_uri(), "/a/ü #1?"),
    ],
)
def test_places_are_named_by_path_or_uri(uri: str, path: str) -> None:
    assert local_path(uri) == Path(path)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "http://host/x", "file://host/x", "gs://b", "file://[x"])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="local files"):
        local_path(uri)


def test_a_store_knows_its_uri(tmp_path: Path) -> None:
    place = tmp_path / "ü #1"
    assert local_path(open_store(str(place)).uri) == place
    assert open_store(place.as_uri()).put_object(b"x")
    assert len([path for path in place.rglob("*") if path.is_file()]) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "f", b"old")
    write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
