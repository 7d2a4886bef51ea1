"""Content-addressed object store: objects by sha256, written once and verified on every read, through obstore.

A store is `file://…`, a plain path, or `s3://bucket/prefix` at AWS or any S3-compatible endpoint. Keys are
`objects/<first two digits>/<sha256>`. They are written put-if-absent, so writers never race and no object is partial.
Objects that are looked up without a digest (ledgers, dossiers, public keys, runs) have a readable name, also written
once. Their readers verify a signature, or a digest in a signed record.

No URI, digest, listing or symlink makes the store read or write outside its folder or prefix.
"""

import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

from hardcase.errors import HardcaseError, InputError, UnavailableError
from hardcase.progress import track
from hardcase.store.cache import open_cache
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.location import is_linked, is_plain, open_objects, parse_local_path, refuse_links, split_s3
from hardcase.store.ranges import RangeFile, is_forked, read_in_fork
from hardcase.store.s3_errors import describe_error

NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
CONCURRENCY: Final = 4  # transfers at once; each holds a complete object in memory
CONFLICT_WAITS: Final = (0.2, 0.5, 1, 2, 5)  # longest waits, in seconds, before a write in conflict is repeated


class Store:
    """Read and write the objects of the store at `uri`.

    Every method raises `HardcaseError` if the store cannot be read or written, or an object is missing or altered,
    and `UnavailableError` where S3 does not tell.
    """

    def __init__(self, uri: str, *, cached: bool = True) -> None:
        self.uri, self._objects = open_objects(uri)
        self.local = self.uri.startswith("file:")
        self._cache = open_cache() if cached and not self.local else None

    def put_object(self, data: bytes) -> str:
        """Store `data`, unless it is stored already, and return its sha256."""
        digest = bytes_digest(data)
        name = refuse_links(self.uri, object_name(digest))
        with self._report_errors(f"cannot write {name}", "free space or fix permissions"):
            if self._create(name, data) != data:  # altered by a damaged disk
                obstore.put(self._objects, name, data, use_multipart=False)
        return digest

    def put_file(self, path: Path, digest: str) -> None:
        """Move a file with that sha256 into the store, unless it is stored already."""
        if self.local:
            target = parse_local_path(self.uri) / refuse_links(self.uri, object_name(digest))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)  # never replaces
            except OSError:  # stored already, on another device, or without links
                self.put_object(path.read_bytes())
        else:
            self.put_object(path.read_bytes())
        path.unlink()

    def get_object(self, digest: str) -> bytes:
        """Return the object with that sha256."""
        name = object_name(digest)  # first, because the cache makes a path of the digest too
        if self._cache and (hit := self._cache.get(digest)) is not None and bytes_digest(hit) == digest:
            return hit
        refuse_links(self.uri, name)
        with self._report_errors(f"cannot read {name}", "fix permissions, or remove it"):
            try:
                data = self._download(name)
            except FileNotFoundError as error:
                raise HardcaseError(f"store {self.uri}: {name} is missing; run again to create it") from error
        if bytes_digest(data) != digest:
            raise HardcaseError(f"store {self.uri}: {name} was altered; remove it and run again")
        if self._cache is not None:
            self._cache.put(digest, data)
        return data

    def hold_object(self, digest: str, *, verified: bool = False) -> Path:
        """Return a local file that holds an object: in the store, or in this machine's cache, where it is fetched.

        A `verified` object is not verified again if the file is there.
        """
        cache = self._cache or open_cache()
        path = parse_local_path(self.uri) / object_name(digest) if self.local else cache.folder / digest
        if not (verified and path.exists()):
            data = self.get_object(digest)
            if not self.local and self._cache is None:
                cache.put(digest, data)
            if not path.exists():
                raise HardcaseError(
                    f"{path}: the cache did not keep {object_name(digest)}; free space, or raise HARDCASE_CACHE_GB"
                )
        return path

    def open_ranges(self, digest: str, size: int) -> RangeFile:
        """Open an object of `size` bytes on S3 to read parts of it, which are not verified."""

        def read_span(start: int, end: int) -> bytes:
            with self._report_errors(f"cannot read {name}", "fix permissions"):
                return self._download(name, (start, end))

        name = object_name(digest)
        return RangeFile(read_span, size)

    def fits_locally(self, size: int) -> bool:
        """Return whether objects of `size` bytes together are local files, or fit into this machine's cache."""
        return self.local or size <= (self._cache or open_cache()).limit

    def _download(self, name: str, span: tuple[int, int] | None = None) -> bytes:
        if self.local:  # twice as fast as through obstore, which copies
            return (parse_local_path(self.uri) / name).read_bytes()
        if is_forked():
            bucket, prefix = split_s3(self.uri)
            return read_in_fork(bucket, f"{prefix}/{name}" if prefix else name, span)
        if span is None:
            return bytes(obstore.get(self._objects, name).bytes())
        return bytes(obstore.get_range(self._objects, name, start=span[0], end=span[1]))

    def check_object(self, digest: str) -> None:
        """Verify that the store itself holds an object, and on local files also that it is unaltered."""
        if self._cache is None:
            self.get_object(digest)
            return
        name = object_name(digest)
        with self._report_errors(f"cannot find {name}", "fix permissions"):
            try:
                obstore.head(self._objects, name)
            except FileNotFoundError as error:
                raise HardcaseError(f"store {self.uri}: {name} is missing; run again to create it") from error

    def get_objects(self, digests: Sequence[str]) -> Iterator[bytes]:
        """Yield the objects with those sha256 in order, and fetch a few ahead."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            pending: deque[Future[bytes]] = deque()
            for digest in digests:
                if len(pending) == CONCURRENCY:
                    yield pending.popleft().result()
                pending.append(pool.submit(self.get_object, digest))
            while pending:
                yield pending.popleft().result()

    @contextmanager
    def _report_errors(self, failure: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            kind = HardcaseError if self.local else UnavailableError
            raise kind(f"store {self.uri}: {failure}: {describe_error(error, remedy)}") from error

    def put_folder(self, folder: Path) -> str:
        """Store every file of a folder, and return the digest that `path_digest` gives for the folder."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if odd := [name for name in names if not is_plain(name)]:
            raise HardcaseError(f"folder {folder}: {odd[0]!r} is not a valid name in a store; rename the file")
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            digests = pool.map(lambda path: self.put_object(path.read_bytes()), files)
            listing = dict(zip(names, track(digests, f"storing {folder.name}", len(files)), strict=True))
        return self.put_object(canonical_json(listing))

    def get_folder(self, digest: str, folder: Path) -> None:
        """Write the files of a stored folder under `folder`.

        Nothing is written if the object lists no folder, or a symlink leads out of `folder`.
        """
        listing = self._read_listing(digest)
        for name in listing:
            if is_linked(folder, name):
                raise HardcaseError(
                    f"{folder / name}: a symlink leads out of the folder; remove it, or name a new folder"
                )

        def fetch(name: str) -> None:
            data = self.get_object(listing[name])
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, data)
            except OSError as error:
                raise HardcaseError(f"{folder / name}: cannot be written: {error.strerror}; free space") from error

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for _ in track(pool.map(fetch, listing), f"fetching {folder.name}", len(listing)):
                pass

    def _read_listing(self, digest: str) -> dict[str, str]:
        where = f"store {self.uri}: {object_name(digest)}"
        try:
            listing = json.loads(self.get_object(digest))
        except (ValueError, RecursionError):
            listing = None
        if not isinstance(listing, dict) or not all(_is_digest(file) for file in listing.values()):
            raise HardcaseError(f"{where} lists no folder; name the digest of a stored folder")
        folders = {parent.as_posix() for name in listing for parent in PurePosixPath(name).parents}
        if odd := [name for name in listing if name in folders or not is_plain(name)]:
            raise HardcaseError(
                f"{where} lists {odd[0][:200]!r}, which is outside its folder or no file name; do not trust that store"
            )
        return listing

    def put_named(self, name: str, data: bytes) -> bool:
        """Store `data` under a readable name, unless the name is taken, and return whether `data` is stored there.

        Writers that compete for a name need unlike bytes, because equal bytes count as stored by each of them.
        """
        with self._report_errors(f"cannot write {name}", "free space or fix permissions"):
            return self._create(refuse_links(self.uri, check_name(name)), data) == data

    def get_named(self, name: str) -> bytes | None:
        """Return the object under a readable name, unverified, or None if there is none."""
        with self._report_errors(f"cannot read {name}", "fix permissions"):
            return self._read(refuse_links(self.uri, check_name(name)))

    def _create(self, name: str, data: bytes) -> bytes:
        """Store `data`, unless the name is taken, and return the bytes that are stored under it.

        The answer to a write that S3 carried out may be lost. A retry, obstore's own too, then finds the name taken by
        its own bytes. obstore also reports the name as taken when S3 answers 409 because of a conflicting write, after
        which there may be no object. Only what is stored tells whose write it was.
        """
        waits = iter(CONFLICT_WAITS)
        while True:
            try:
                obstore.put(self._objects, name, data, mode="create")
                return data
            except (AlreadyExistsError, GenericError) as error:
                if (stored := self._read(name)) is not None:
                    return stored
                if isinstance(error, GenericError) or (wait := next(waits, None)) is None:
                    raise
            time.sleep(random.random() * wait)

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._objects, name).bytes())
        except FileNotFoundError:
            return None

    def check_rights(self, name: str, data: bytes) -> None:
        """Verify that this process may write, read and list, and that the store lets no name be written twice.

        `name` holds `data` afterwards, and nothing else was written.

        Raises:
            InputError: the store holds something else under the name, or replaces what is stored.
        """
        if not self.put_named(name, data):
            raise InputError(f"store {self.uri}: {name} was altered; bring back the original")
        with self._report_errors(f"cannot write {name}", "fix permissions"):
            try:
                obstore.put(self._objects, name, data, mode="create")
            except AlreadyExistsError:
                pass
            else:
                raise InputError(f"store {self.uri}: ignores conditions of a write; `hardcase store check` says more")
        if self.get_named(name) != data or name not in self.list_names(name.rpartition("/")[0]):
            raise InputError(f"store {self.uri}: {name} was written, and is not listed; use another store")

    def list_objects(self) -> Iterator[tuple[str, int, datetime]]:
        """Yield the sha256, size in bytes and time of writing of every object."""
        with self._report_errors("cannot be listed", "fix permissions"):
            for page in obstore.list(self._objects, prefix="objects"):
                for entry in page:
                    yield entry["path"].rpartition("/")[2], entry["size"], entry["last_modified"]

    def list_names(self, prefix: str) -> list[str]:
        """Return all readable names in the folder `prefix`, sorted."""
        with self._report_errors(f"cannot list {prefix}", "fix permissions"):
            if self.local:
                root = parse_local_path(self.uri)
                for folder, folders, files in os.walk(root / refuse_links(self.uri, check_name(prefix))):
                    for name in folders + files:
                        refuse_links(self.uri, (Path(folder) / name).relative_to(root).as_posix())
            pages = obstore.list(self._objects, prefix=check_name(prefix))
            return sorted(entry["path"] for page in pages for entry in page)


def open_store(uri: str, *, cached: bool = True, create: bool = True) -> Store:
    """Open the store at `uri`.

    Args:
        uri: of the store.
        cached: read objects from this machine's cache where it has them, or always from the store itself.
        create: create the folder of a local store that does not exist.

    Raises:
        InputError: the store cannot be opened.
    """
    if not (create or uri.startswith("s3://") or parse_local_path(uri).is_dir()):
        raise InputError(
            f"store {uri}: no such folder; run `hardcase run` first, or name another by --store or HARDCASE_HOME"
        )
    return Store(uri, cached=cached)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen incomplete: to a draft, synced, then renamed."""
    draft = path.with_name(f".{path.name}.draft")
    # Never write through a symlink that somebody put in the draft's place.
    with open(draft, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def sync(path: Path) -> Path:
    """Wait until a file's bytes are on the disk, and return its path."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def object_name(digest: str) -> str:
    """Return the key of the object with that sha256, or raise `HardcaseError` if it is none."""
    if not _is_digest(digest):
        raise HardcaseError(
            f"store: {str(digest)[:80]!r} is no sha256 of 64 lower-case hex digits; check where it comes from"
        )
    return f"objects/{digest[:2]}/{digest}"


def check_name(name: str) -> str:
    """Return a readable name unchanged, or raise `InputError` if it is not valid."""
    if not NAME.fullmatch(name):
        raise InputError(f"store: {name!r} is not a valid object name; use letters, digits, `._-`, in folders by `/`")
    return name


def _is_digest(digest: object) -> bool:
    return isinstance(digest, str) and DIGEST.fullmatch(digest) is not None
