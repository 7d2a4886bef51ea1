"""The store: content by sha256, verified on every read."""

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardcase.errors import HardcaseError, InputError
from hardcase.store.cache import ObjectCache
from hardcase.store.conformance import check_store
from hardcase.store.digest import path_digest
from hardcase.store.location import parse_local_path, split_s3
from hardcase.store.store import Store, object_name, open_store, write_atomically


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def kept(store: Store, digest: str) -> Path:
    return parse_local_path(store.uri) / "objects" / digest[:2] / digest


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
        with pytest.raises(InputError, match="cannot create its folder"):
            open_store(str(place))


def test_a_folder_is_restored_from_the_digest_of_its_path(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "ü 🫖.bin").write_bytes(bytes(1000))
    digest = store.put_folder(folder)
    assert digest == path_digest(folder)
    store.get_folder(digest, tmp_path / "back")
    assert path_digest(tmp_path / "back") == digest


CLIMBING = [
    "../out",
    "/tmp/hardcase-out",
    "a/../../out",
    "..",
    ".",
    "",
    "a/",
    "a//b",
    "./a",
    "a\\b",
    "..\\out",
    "C:\\out",
]
ODD = ["a\0b", "a\nb", "a\x7fb", "a\x85b", "\udc80", "fine/below"]


@pytest.mark.parametrize("name", [*CLIMBING, *ODD])
def test_a_listing_cannot_write_outside_its_folder(store: Store, tmp_path: Path, name: str) -> None:
    inner = store.put_object(b"x")
    digest = store.put_object(json.dumps({"fine": inner, name: inner}).encode())
    with pytest.raises(HardcaseError, match="outside its folder"):
        store.get_folder(digest, tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


X = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    "listing",
    [b"", b"no json", b"\xff\xfe\xff", b"[" * 10**5, b"1", b"null", b'"a"', b"[]", b'["a"]', b'{"a":1}', b'{"a":null}']
    + [f'{{"x":"{X}","a":{value}}}'.encode() for value in (f'["{X}"]', '"../../secret"', '"abc"', f'"{X.upper()}"')]
    + [f'{{"x":"{X}","a":"{value}"}}'.encode() for value in (X + "0", X + "\\n", X[:-1] + "/", "\u0661" * 64)],
)
def test_an_object_that_lists_no_folder_is_refused_and_nothing_written(
    store: Store, tmp_path: Path, listing: bytes
) -> None:
    store.put_object(b"x")
    digest = store.put_object(listing)
    with pytest.raises(HardcaseError, match=f"{digest} lists no folder"):
        store.get_folder(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("link", ["deep", "deep/weights", ".config.json.draft"])
def test_a_link_waiting_in_the_folder_does_not_lead_a_file_out(store: Store, tmp_path: Path, link: str) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_bytes(b"w")
    (tmp_path / "model" / "config.json").write_text("{}")
    digest = store.put_folder(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_text("mine")
    trap = tmp_path / "back" / link
    trap.parent.mkdir(parents=True)
    trap.symlink_to(tmp_path / "out" if link == "deep" else tmp_path / "out" / "weights")
    with pytest.raises(HardcaseError, match=r"link|cannot be written"):
        store.get_folder(digest, tmp_path / "back")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"weights": "mine"}


def test_a_folder_with_a_name_that_could_not_come_back_is_not_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a\\b").write_bytes(b"w")
    with pytest.raises(HardcaseError, match="not a valid name in a store"):
        store.put_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "digest", ["", "x", "../" * 21 + "x", X.upper(), X + "\n", "/" + X[1:], X[:2] + "/" + X[3:], None]
)
def test_an_invalid_digest_makes_no_path_of_object_or_cache(
    store: Store, digest: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "_cache", ObjectCache(tmp_path / "cache", 10**9))
    for ask in (store.get_object, store.check_object, lambda wrong: store.get_folder(wrong, tmp_path / "back")):
        with pytest.raises(HardcaseError, match="no sha256 of 64 lower-case hex digits"):
            ask(digest)


def link_out(store: Store, name: str) -> Path:
    """Move what lies there out of the store, and leave a link."""
    inside = parse_local_path(store.uri) / name
    outside = parse_local_path(store.uri).parent / "elsewhere"
    if inside.exists():
        inside.rename(outside)
    else:
        inside.parent.mkdir(parents=True, exist_ok=True)
        outside.mkdir(parents=True)
    inside.symlink_to(outside)
    return outside


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_link_in_the_store_neither_reads_nor_writes_outside_it(store: Store, depth: int) -> None:
    digest = store.put_object(b"x")
    outside = link_out(store, "/".join(object_name(digest).split("/")[:depth]))
    before = sorted(outside.rglob("*"))
    for ask in (store.get_object, store.check_object):
        with pytest.raises(HardcaseError, match="is a symlink or is behind one"):
            ask(digest)
    with pytest.raises(HardcaseError, match="is a symlink or is behind one"):
        store.put_object(b"x")
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("linked", ["models", "models/m", "models/m/1.json"])
def test_a_link_among_the_names_neither_reads_writes_nor_lists_outside_the_store(store: Store, linked: str) -> None:
    store.put_named("models/m/1.json", b"x")
    outside = link_out(store, linked)
    before = sorted(outside.rglob("*"))
    for ask in (
        lambda: store.get_named("models/m/1.json"),
        lambda: store.put_named("models/m/1.json", b"y"),
        lambda: store.list_names("models"),
    ):
        with pytest.raises(HardcaseError, match="is a symlink or is behind one"):
            ask()
    assert sorted(outside.rglob("*")) == before


def test_a_dangling_link_creates_nothing_where_it_leads(store: Store, tmp_path: Path) -> None:
    (parse_local_path(store.uri) / "keys").symlink_to(tmp_path / "not there yet")
    with pytest.raises(HardcaseError, match="is a symlink"):
        store.put_named("keys/a", b"x")
    assert not (tmp_path / "not there yet").exists()


def test_the_check_of_a_store_writes_nothing_behind_a_link(store: Store) -> None:
    outside = link_out(store, "check")
    with pytest.raises(HardcaseError, match="is a symlink"):
        check_store(store.uri)
    assert not list(outside.iterdir())


def test_a_store_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = open_store(str(tmp_path / "store"))
    assert store.get_object(store.put_object(b"x")) == b"x"
    assert store.put_named("models/m", b"y") and store.list_names("models") == ["models/m"]
    assert not [check for check in check_store(store.uri) if check.verdict != "ok"]


# Spellings of a way out are likelier here than in plain text.
PARTS = ["a", "b", ".", "..", "/", "\\", "%2e", "%2f", "\0", "\n", "~", "é", "#", "?", "\udc80"]
WAYS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def all_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@FUZZ
@given(WAYS)
def test_no_readable_name_reads_or_writes_outside_the_store(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"secret")
    with suppress(HardcaseError):
        store.put_named(name, b"kept")
    with suppress(HardcaseError):
        assert store.get_named(name) in (None, b"kept")
    with suppress(HardcaseError):
        assert all((tmp_path / "store" / found).is_file() for found in store.list_names(name))
    assert (tmp_path / "a").read_bytes() == b"secret"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "store"}


@FUZZ
@given(st.dictionaries(WAYS | st.text(max_size=20), st.just(X) | WAYS, max_size=3))
def test_no_listing_writes_outside_its_folder(store: Store, listing: dict[str, str]) -> None:
    store.put_object(b"x")
    digest = store.put_object(json.dumps(listing).encode())
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "deep" / "back"
        try:
            store.get_folder(digest, folder)
        except HardcaseError:
            assert not all_below(Path(scratch))
        else:
            assert all_below(Path(scratch)) == {f"deep/back/{name}" for name in listing}


@FUZZ
@given(WAYS)
def test_a_uri_of_s3_either_means_exactly_what_it_says_or_is_refused(prefix: str) -> None:
    try:
        bucket, found = split_s3(f"s3://bucket/{prefix}")
    except InputError:
        return
    assert f"s3://{bucket}/{found}" == f"s3://bucket/{prefix}".removesuffix("/" if prefix else "")
    assert PurePosixPath("/root", found).is_relative_to("/root")
    assert not set(found.split("/")) & {".", ".."} and not set(found) & set("%\\?#\0\n")


@FUZZ
@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_every_path_comes_back_from_its_uri(name: str) -> None:
    path = Path(os.path.abspath(os.fsdecode(name.encode(errors="surrogatepass"))))
    assert parse_local_path(path.as_uri()) == path


@FUZZ
@given(WAYS)
def test_no_uri_of_a_file_climbs(path: str) -> None:
    with suppress(InputError):
        assert ".." not in parse_local_path(f"file:///root/{path}").parts


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
    assert parse_local_path(uri) == Path(path)


ELSEWHERE = [
    "s3://bucket/x",
    "http://host/x",
    "file://host/x",
    "gs://b",
    "file://[x",
    "",
    "a\0b",
    "s3:/bucket",
    "S3:bucket",
]
UNCLEAR = ["file:/a", "file:a", "FILE:///a", "file:///a?b", "file:///a#b", "file:///a\nb", "file:///a%00b"]
THROUGH = ["file:///a/../b", "file:///a/%2e%2e/b", "file:///a%2f..%2fb", "file:///..", "file://localhost/%2E./b"]


@pytest.mark.parametrize("uri", [*ELSEWHERE, *UNCLEAR, *THROUGH])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="not a local path"):
        parse_local_path(uri)


@pytest.mark.parametrize(
    "uri",
    ["file:///tmp/x", "file://host/x", "/tmp/x", "http://bucket/x", "S3://bucket", "s3:/bucket", "", "s3://", "s3:///x"]
    + ["s3://Bucket", "s3://ab", "s3://" + "b" * 64, "s3://bu_cket", "s3://-bucket", "s3://bucket-", "s3://bu..cket"]
    + ["s3://10.0.0.1/x", "s3://me@bucket/x", "s3://bucket:80/x", "s3://bückêt", "s3://buc\nket", "s3://bucket\n"]
    + [f"s3://bucket/{prefix}" for prefix in ("..", "a/../b", ".", "a/./b", "/a", "a//b", "a//", "%2e%2e/a", "a%2fb")]
    + [f"s3://bucket/{prefix}" for prefix in ("a?x=1", "a#b", "a\\b", "a\tb", "a\nb", "a\0b", "a\x7fb", "a\udc80b")],
)
def test_uris_that_s3_reads_differently_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="not of the form s3://bucket/prefix"):
        split_s3(uri)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://my.bucket-1/", ("my.bucket-1", "")),
        ("s3://bucket/team a/ü/x=1,~b/", ("bucket", "team a/ü/x=1,~b")),
        ("s3://bucket/..a/b..", ("bucket", "..a/b..")),
    ],
)
def test_a_bucket_and_its_prefix_are_taken_as_they_stand(uri: str, place: tuple[str, str]) -> None:
    assert split_s3(uri) == place


def test_a_store_knows_its_uri(tmp_path: Path) -> None:
    place = tmp_path / "ü #1"
    assert parse_local_path(open_store(str(place)).uri) == place
    assert open_store(place.as_uri()).put_object(b"x")
    assert len([path for path in place.rglob("*") if path.is_file()]) == 1


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
