"""The object store: content by sha256, written once and verified on every read, through obstore.

`file://…`, a plain path, or `s3://bucket/prefix` at AWS or any S3-compatible endpoint. Keys are
`objects/<first two digits>/<sha256>`, written put-if-absent, so writers never race and nothing is ever half there.
What must be found without knowing its digest (ledgers, dossiers, public keys, runs) lies under a readable name, also
written once; whoever reads it verifies a signature, or a digest that something signed names.

Nothing outside the place is read or written, whatever a URI, a digest or a listing says, and whatever links somebody
put into a store's folder.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote_to_bytes

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from hardcase.errors import HardcaseError, InputError
from hardcase.progress import track
from hardcase.store.cache import open_cache
from hardcase.store.digest import bytes_digest, canonical_json

NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
# No file and no key has any use for control characters or half characters; a backslash is a folder elsewhere.
ODD: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\\\\]")
# What AWS demands of the name of a bucket: no address of four numbers, no two dots in a row.
BUCKET: Final = re.compile(r"(?!\d+(?:\.\d+){3}$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
AHEAD: Final = 4  # objects on their way at once; each is in memory whole


class Store:
    """Objects by digest at one place.

    Attributes:
        uri: where.
    """

    def __init__(self, uri: str, *, cached: bool = True) -> None:
        self.uri, self._objects = open_objects(uri)
        self._cache = open_cache() if cached and self.uri.startswith("s3://") else None

    def put_object(self, data: bytes) -> str:
        """Keep `data`, unless it is there already; its sha256.

        Raises:
            HardcaseError: the place takes no more.
        """
        digest = bytes_digest(data)
        name = self._inside(object_name(digest))
        try:
            try:
                obstore.put(self._objects, name, data, mode="create")
            except AlreadyExistsError:
                # What a damaged disk left under this name must not stay in the way of the right bytes.
                if bytes(obstore.get(self._objects, name).bytes()) != data:
                    obstore.put(self._objects, name, data, use_multipart=False)
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot keep {name}: {str(error)[:200]}; make room there, or mend its rights"
            ) from error
        return digest

    def get_object(self, digest: str) -> bytes:
        """The bytes of that sha256.

        Raises:
            HardcaseError: they are missing or altered, or that is no sha256.
        """
        name = object_name(digest)  # before the cache is asked: it makes a path of the digest too
        if self._cache is not None and (near := self._cache.get(digest)) is not None:
            if bytes_digest(near) == digest:
                return near
            self._cache.drop(digest)
        data = self._fetch(name)
        if bytes_digest(data) != digest:
            raise HardcaseError(f"store {self.uri}: {name} was altered; remove it and run again")
        if self._cache is not None:
            self._cache.put(digest, data)
        return data

    def check_object(self, digest: str) -> None:
        """Find that the store itself holds that object; on local files, whose disk may err, unaltered too.

        Raises:
            HardcaseError: it does not.
        """
        if self._cache is None:
            self.get_object(digest)
            return
        name = object_name(digest)
        try:
            obstore.head(self._objects, name)
        except (FileNotFoundError, BaseError) as error:
            raise HardcaseError(f"store {self.uri}: {name} is missing; run again to make it anew") from error

    def get_objects(self, digests: Sequence[str]) -> Iterator[bytes]:
        """The bytes of each of those sha256, in order, a few fetched ahead."""
        with ThreadPoolExecutor(AHEAD) as pool:
            ahead: deque[Future[bytes]] = deque()
            for digest in digests:
                if len(ahead) == AHEAD:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(self.get_object, digest))
            while ahead:
                yield ahead.popleft().result()

    def _fetch(self, name: str) -> bytes:
        self._inside(name)
        try:
            if self.uri.startswith("file:"):  # twice as fast as through obstore, which copies
                return (parse_local_path(self.uri) / name).read_bytes()
            return bytes(obstore.get(self._objects, name).bytes())
        except FileNotFoundError as error:
            raise HardcaseError(f"store {self.uri}: {name} is missing; run again to make it anew") from error
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot read {name}: {str(error)[:200]}; mend its rights, or remove it"
            ) from error

    def _inside(self, name: str) -> str:
        refuse_links(self.uri, name)
        return name

    def put_folder(self, folder: Path) -> str:
        """Keep every file of a folder; the digest of the folder, as `path_digest` gives it.

        Raises:
            HardcaseError: the place takes no more, or a file has a name that could not be written back.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if odd := [name for name in names if not _is_plain(name)]:
            raise HardcaseError(f"folder {folder}: {odd[0]!r} is no name to keep a file by; rename it")
        with ThreadPoolExecutor(AHEAD) as pool:
            kept = pool.map(lambda path: self.put_object(path.read_bytes()), files)
            listing = dict(zip(names, track(kept, f"keeping {folder.name}", len(files)), strict=True))
        return self.put_object(canonical_json(listing))

    def get_folder(self, digest: str, folder: Path) -> None:
        """Write the files of a kept folder under `folder`.

        Raises:
            HardcaseError: a file is missing or altered, what is kept there lists no folder, or a link under `folder`
                leads elsewhere; of the last two nothing was written.
        """
        listing = self._listing(digest)
        for name in listing:
            if _is_linked(folder, name):
                raise HardcaseError(
                    f"{folder / name}: a link stands in the way of {name}; remove it, or name a new folder"
                )

        def fetch(name: str) -> None:
            data = self.get_object(listing[name])
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, data)
            except OSError as error:
                raise HardcaseError(f"{folder / name}: cannot be written: {error.strerror}; make room there") from error

        with ThreadPoolExecutor(AHEAD) as pool:
            for _ in track(pool.map(fetch, listing), f"fetching {folder.name}", len(listing)):
                pass

    def _listing(self, digest: str) -> dict[str, str]:
        what = f"store {self.uri}: {object_name(digest)}"
        try:
            listing = json.loads(self.get_object(digest))
        except (ValueError, RecursionError):
            listing = None
        if not isinstance(listing, dict) or not all(_is_digest(file) for file in listing.values()):
            raise HardcaseError(f"{what} lists no folder; name the digest of one that was kept")
        above = {parent.as_posix() for name in listing for parent in PurePosixPath(name).parents}
        if odd := [name for name in listing if name in above or not _is_plain(name)]:
            raise HardcaseError(
                f"{what} lists {odd[0][:200]!r}, outside its folder or no file's name; trust nothing from there"
            )
        return listing

    def put_named(self, name: str, data: bytes) -> bool:
        """Keep `data` under a readable name; False if something is kept there already, which stays.

        Raises:
            HardcaseError: the place takes no more.
        """
        try:
            obstore.put(self._objects, self._inside(check_name(name)), data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot keep {name}: {str(error)[:200]}; make room there, or mend its rights"
            ) from error
        return True

    def get_named(self, name: str) -> bytes | None:
        """What is kept under a readable name, unverified; None if nothing is.

        Raises:
            HardcaseError: it cannot be read.
        """
        try:
            return bytes(obstore.get(self._objects, self._inside(check_name(name))).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise HardcaseError(f"store {self.uri}: cannot read {name}: {str(error)[:200]}; mend its rights") from error

    def list_objects(self) -> Iterator[tuple[str, int, datetime]]:
        """Every object: its sha256, its size in bytes, when it was written.

        Raises:
            HardcaseError: the place cannot be listed.
        """
        try:
            for page in obstore.list(self._objects, prefix="objects"):
                for entry in page:
                    yield entry["path"].rpartition("/")[2], entry["size"], entry["last_modified"]
        except (BaseError, OSError) as error:
            raise HardcaseError(f"store {self.uri}: cannot be listed: {str(error)[:200]}; mend its rights") from error

    def list_names(self, prefix: str) -> list[str]:
        """All readable names in the folder `prefix`, sorted.

        Raises:
            HardcaseError: the place cannot be listed.
        """
        try:
            if self.uri.startswith("file:"):
                root = parse_local_path(self.uri)
                for folder, folders, files in os.walk(root / self._inside(check_name(prefix))):
                    for name in folders + files:
                        self._inside((Path(folder) / name).relative_to(root).as_posix())
            pages = obstore.list(self._objects, prefix=check_name(prefix))
            return sorted(entry["path"] for page in pages for entry in page)
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot list {prefix}: {str(error)[:200]}; mend its rights"
            ) from error


def open_store(uri: str, *, cached: bool = True) -> Store:
    """The store at `uri`.

    Args:
        uri: where.
        cached: read what was fetched before from this machine's cache; else always from the store itself.

    Raises:
        InputError: not a place that can be opened.
    """
    return Store(uri, cached=cached)


def open_objects(uri: str) -> tuple[str, ObjectStore]:
    """The place of that URI as obstore takes it, and its full URI.

    On S3 the endpoint, region and credentials are those of the AWS chain, as boto3 finds them (environment, profile,
    role of the pod or the machine; `AWS_ENDPOINT_URL` for another endpoint). Server errors, time-outs and refusals to
    go so fast are tried again, waiting longer each time.

    Raises:
        InputError: no such kind of place, or it cannot be opened.
    """
    if not uri.startswith("s3://"):
        path = parse_local_path(uri)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"store {uri}: cannot be made a folder: {error.strerror}; name another place") from error
        return path.as_uri(), LocalStore(path)
    bucket, prefix = split_s3(uri)
    import boto3  # not needed for local files, and slow to import
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        raise InputError(f"store {uri}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret")
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    endpoint = client.meta.endpoint_url
    return f"s3://{bucket}/{prefix}".rstrip("/"), S3Store(
        bucket,
        prefix=prefix or None,
        region=client.meta.region_name,
        credential_provider=Boto3CredentialProvider(session),
        # A bucket with Object Lock takes no upload without a checksum, and any bucket then refuses a garbled one.
        checksum_algorithm="SHA256",
        retry_config={"max_retries": 8, "retry_timeout": timedelta(minutes=3)},
        client_options={"timeout": timedelta(minutes=5), "allow_http": endpoint.startswith("http://")},
        **(
            {} if endpoint.endswith(".amazonaws.com") else {"endpoint": endpoint, "virtual_hosted_style_request": False}
        ),
    )


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; nothing in it is decoded.

    Raises:
        InputError: it is not of that form.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.removesuffix("/")
    if not uri.startswith("s3://") or not BUCKET.fullmatch(bucket):
        raise InputError(f"store {uri!r}: not of the form s3://bucket/prefix, with a bucket as S3 names them")
    if prefix and (not _is_plain(prefix) or re.search("[%?#]", prefix)):
        raise InputError(
            f"store {uri!r}: not of the form s3://bucket/prefix; leave out of the prefix empty parts, `.`, `..`, "
            "`%`, `?`, `#`, backslashes and control characters"
        )
    return bucket, prefix


def parse_local_path(uri: str) -> Path:
    """The path that `file:///…` or a plain path names.

    Raises:
        InputError: another scheme or machine, a URI that leads through `..`, or nothing.
    """
    if uri.startswith(("file:///", "file://localhost/")) and not re.search("[?#\0-\x1f\x7f\ud800-\udfff]", uri):
        path = os.fsdecode(unquote_to_bytes("/" + uri.removeprefix("file://").partition("/")[2]))
        if "\0" not in path and ".." not in path.split("/"):
            return Path(path)
    elif uri and "\0" not in uri and "://" not in uri and not uri.lower().startswith(("file:", "s3:")):
        return Path(os.path.abspath(uri))
    raise InputError(f"{uri!r}: not a place on local files; name a folder or file:///…, without `..`, `?` or `#`")


def refuse_links(uri: str, name: str) -> None:
    """Below a store's folder no link is followed; the folder itself may be reached by one.

    Raises:
        HardcaseError: `name` is a link, or lies behind one.
    """
    if uri.startswith("file:") and _is_linked(parse_local_path(uri), name):
        raise HardcaseError(f"store {uri}: {name} is a link or lies behind one; put what it leads to in its place")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either not there or whole, whatever happens."""
    draft = path.with_name(f".{path.name}.draft")
    # Whoever puts a link in the draft's place must not have its target overwritten.
    with open(draft, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def object_name(digest: str) -> str:
    """Where the object of that sha256 lies in the store.

    Raises:
        HardcaseError: that is no sha256.
    """
    if not _is_digest(digest):
        raise HardcaseError(
            f"store: {str(digest)[:80]!r} is no sha256 of 64 lower-case hex digits; check what names it"
        )
    return f"objects/{digest[:2]}/{digest}"


def check_name(name: str) -> str:
    """A readable name, as it is.

    Raises:
        InputError: it could be none.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"store: {name!r} is no name for an object; use letters, digits, `._-`, in folders by `/`")
    return name


def _is_digest(digest: object) -> bool:
    return isinstance(digest, str) and DIGEST.fullmatch(digest) is not None


def _is_plain(name: str) -> bool:
    """Whether it leads from a folder down to a file in it, on every system."""
    return not ODD.search(name) and {"", ".", ".."}.isdisjoint(name.split("/"))


def _is_linked(root: Path, name: str) -> bool:
    path = Path(os.path.realpath(root), name)
    return os.path.realpath(path) != str(path)
