"""Read the image files of a source: a folder of this machine, or a prefix on S3. Nothing outside of it is read."""

import os
import stat
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, Protocol

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from hardcase.data.images import MAX_BYTES
from hardcase.data.quarantine import BrokenRule, Reason
from hardcase.data.source import MANIFESTS, SUFFIXES, choose_manifest, find_manifest
from hardcase.errors import HardcaseError, InputError
from hardcase.store.location import open_objects, parse_local_path
from hardcase.store.s3_errors import describe_error, find_code
from hardcase.store.store import sync

NO_BUCKET: Final = "NoSuchBucket"


class BadPath(BrokenRule):
    """A path that leads to no image of the source."""


class Files(Protocol):
    """Where the images of a source are."""

    def read(self, path: str) -> bytes:
        """Return the bytes of a file inside the source, not larger than an image may be, or raise `BadPath`."""


class LocalFiles(NamedTuple):
    """The files of a folder; it is resolved."""

    folder: Path

    def read(self, path: str) -> bytes:
        """Return the bytes of a regular file inside the folder, or raise `BadPath`; links inside it are followed."""
        target = self.folder / path
        try:
            real = target.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadPath(
                Reason.MISSING_FILE, _hint_spelling(path, lambda name: (self.folder / name).exists())
            ) from error
        except (OSError, RuntimeError) as error:
            raise BadPath(Reason.BAD_PATH, f"{path}: {type(error).__name__}") from error
        if not real.is_relative_to(self.folder):
            raise BadPath(Reason.OUTSIDE_SOURCE, path)
        try:
            status = real.stat()
            if not stat.S_ISREG(status.st_mode):
                raise BadPath(Reason.NOT_REGULAR, path)
            _check_size(path, status.st_size)
            # Without blocking: a pipe that has replaced an image meanwhile must not stop the run.
            with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
                return file.read(status.st_size)
        except OSError as error:
            raise BadPath(Reason.MISSING_FILE, f"{path}: {error.strerror}") from error


class RemoteFiles:
    """The objects under a prefix on S3. Each process that reads opens its own client."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __reduce__(self) -> tuple[Callable[[str], "RemoteFiles"], tuple[str]]:
        return RemoteFiles, (self.uri,)

    @cached_property
    def _objects(self) -> ObjectStore:
        return open_objects(self.uri)[1]

    def read(self, path: str) -> bytes:
        """Return the bytes of an object, or raise `BadPath`; raise `HardcaseError` where S3 cannot be read."""
        try:
            answer = obstore.get(self._objects, str(PurePosixPath(path)))
            _check_size(path, answer.meta["size"])
            return bytes(answer.bytes())
        except ValueError as error:
            raise BadPath(Reason.BAD_PATH, f"{path}: holds a character that a key must not") from error
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and find_code(error) != NO_BUCKET:
                hint = _hint_spelling(path, lambda name: _exists(self._objects, str(PurePosixPath(name))))
                raise BadPath(Reason.MISSING_FILE, hint) from error
            remedy = "check the address and permissions"
            raise HardcaseError(f"source {self.uri}: {path}: {describe_error(error, remedy)}") from error


def open_source(source: str, scratch: Path) -> tuple[Path, Files]:
    """Return the manifest of a source, which may be on S3, and its files; raise `InputError` if there is none.

    A manifest on S3 is fetched into `scratch`. The source is a folder with one manifest, or a manifest.
    """
    if not source.startswith("s3://"):
        manifest = find_manifest(parse_local_path(source))
        return manifest, LocalFiles(manifest.parent.resolve())
    uri, name = split_manifest(source)
    _, objects = open_objects(uri)
    try:
        name = name or choose_manifest([name for name in MANIFESTS if _exists(objects, name)], source)
        manifest = scratch / name
        if not manifest.exists():
            _fetch(objects, name, manifest)
    except (BaseError, OSError) as error:
        remedy = "check the address and permissions"
        raise InputError(f"source {source}: cannot be read: {describe_error(error, remedy)}") from error
    return manifest, RemoteFiles(uri)


def split_manifest(uri: str) -> tuple[str, str]:
    """Split the URI of a source on S3 into its folder and the name of the manifest, empty where it names none."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return (folder, name) if name.lower().endswith(SUFFIXES) else (uri, "")


def _exists(objects: ObjectStore, name: str) -> bool:
    try:
        obstore.get(objects, name)  # whose answer, unlike that of HEAD, has a code
    except FileNotFoundError as error:
        if find_code(error) == NO_BUCKET:
            raise
        return False
    return True


def _hint_spelling(path: str, exists: Callable[[str], bool]) -> str:
    """Return a path, with its other spelling in Unicode if there is a file of that name: both look the same."""
    for form in ("NFC", "NFD"):
        with suppress(BaseError, OSError):
            if (other := unicodedata.normalize(form, path)) != path and exists(other):
                return (
                    f"{ascii(path)[1:-1]}: the file's name is spelled {ascii(other)[1:-1]} ({form}); write it like that"
                )
    return path


def _fetch(objects: ObjectStore, name: str, path: Path) -> None:
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        for chunk in obstore.get(objects, name):
            file.write(chunk)
    sync(draft).replace(path)


def _check_size(path: str, size: int) -> None:
    if size > MAX_BYTES:
        raise BadPath(Reason.TOO_MANY_BYTES, f"{path}: {size} bytes; at most {MAX_BYTES}")
