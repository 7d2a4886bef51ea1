"""The object store: content by sha256, written once and verified on every read, through obstore.

`file://…`, a plain path, or `s3://bucket/prefix` at AWS or any S3-compatible endpoint. Keys are
`objects/<first two digits>/<sha256>`, written put-if-absent, so writers never race and nothing is ever half there.
What must be found without knowing its digest (ledgers, dossiers, public keys, runs) lies under a readable name, also
written once; whoever reads it verifies a signature, or a digest that something signed names.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from hardcase.data.cache import cache_of_this_machine
from hardcase.data.digest import bytes_digest, canonical_json
from hardcase.errors import HardcaseError, InputError
from hardcase.progress import track

NAME: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
AHEAD: Final = 4  # objects on their way at once; each is in memory whole


class Store:
    """Objects by digest at one place.

    Attributes:
        uri: where.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self._objects = open_objects(uri)
        self._cache = cache_of_this_machine() if self.uri.startswith("s3://") else None

    def put_object(self, data: bytes) -> str:
        """Keep `data`, unless it is there already; its sha256.

        Raises:
            HardcaseError: the place takes no more.
        """
        digest = bytes_digest(data)
        try:
            try:
                obstore.put(self._objects, _key(digest), data, mode="create")
            except AlreadyExistsError:
                # What a damaged disk left under this name must not stay in the way of the right bytes.
                if bytes(obstore.get(self._objects, _key(digest)).bytes()) != data:
                    obstore.put(self._objects, _key(digest), data)
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot keep {_key(digest)}: {str(error)[:200]}; make room there, or mend its rights"
            ) from error
        return digest

    def get_object(self, digest: str) -> bytes:
        """The bytes of that sha256.

        Raises:
            HardcaseError: they are missing or altered.
        """
        if self._cache is not None and (near := self._cache.get(digest)) is not None:
            if bytes_digest(near) == digest:
                return near
            self._cache.drop(digest)
        data = self._fetch(digest)
        if bytes_digest(data) != digest:
            raise HardcaseError(f"store {self.uri}: {_key(digest)} was altered; remove it and run again")
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
        try:
            obstore.head(self._objects, _key(digest))
        except (FileNotFoundError, BaseError) as error:
            raise HardcaseError(f"store {self.uri}: {_key(digest)} is missing; run again to make it anew") from error

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

    def _fetch(self, digest: str) -> bytes:
        try:
            return bytes(obstore.get(self._objects, _key(digest)).bytes())
        except FileNotFoundError as error:
            raise HardcaseError(f"store {self.uri}: {_key(digest)} is missing; run again to make it anew") from error
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot read {_key(digest)}: {str(error)[:200]}; mend its rights, or remove it"
            ) from error

    def put_folder(self, folder: Path) -> str:
        """Keep every file of a folder; the digest of the folder, as `path_digest` gives it."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        with ThreadPoolExecutor(AHEAD) as pool:
            kept = pool.map(lambda path: self.put_object(path.read_bytes()), files)
            listing = dict(zip(names, track(kept, f"keeping {folder.name}", len(files)), strict=True))
        return self.put_object(canonical_json(listing))

    def get_folder(self, digest: str, folder: Path) -> None:
        """Write the files of a kept folder under `folder`.

        Raises:
            HardcaseError: a file is missing or altered, or the listing names a place outside the folder.
        """
        listing = json.loads(self.get_object(digest))
        for name in listing:
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise HardcaseError(f"store {self.uri}: {_key(digest)} lists {name!r}, outside its folder")
        fetched = track(self.get_objects(list(listing.values())), f"fetching {folder.name}", len(listing))
        for name, data in zip(listing, fetched, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, data)

    def put_named(self, name: str, data: bytes) -> bool:
        """Keep `data` under a readable name; False if something is kept there already, which stays.

        Raises:
            HardcaseError: the place takes no more.
        """
        try:
            obstore.put(self._objects, _checked(name), data, mode="create")
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
            return bytes(obstore.get(self._objects, _checked(name)).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise HardcaseError(f"store {self.uri}: cannot read {name}: {str(error)[:200]}; mend its rights") from error

    def names(self, prefix: str) -> list[str]:
        """All readable names in the folder `prefix`, sorted.

        Raises:
            HardcaseError: the place cannot be listed.
        """
        try:
            pages = obstore.list(self._objects, prefix=_checked(prefix))
            return sorted(entry["path"] for page in pages for entry in page)
        except (BaseError, OSError) as error:
            raise HardcaseError(
                f"store {self.uri}: cannot list {prefix}: {str(error)[:200]}; mend its rights"
            ) from error


def open_store(uri: str) -> Store:
    """The store at `uri`.

    Raises:
        InputError: not a place that can be opened.
    """
    return Store(uri)


def open_objects(uri: str) -> tuple[str, ObjectStore]:
    """The place of that URI as obstore takes it, and its full URI.

    On S3 the endpoint, region and credentials are those of the AWS chain, as boto3 finds them (environment, profile,
    role of the pod or the machine; `AWS_ENDPOINT_URL` for another endpoint). Server errors, time-outs and refusals to
    go so fast are tried again, waiting longer each time.

    Raises:
        InputError: no such kind of place, or it cannot be opened.
    """
    if not uri.startswith("s3://"):
        path = local_path(uri)
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
        retry_config={"max_retries": 8, "retry_timeout": timedelta(minutes=3)},
        client_options={"timeout": timedelta(minutes=5), "allow_http": endpoint.startswith("http://")},
        **(
            {} if endpoint.endswith(".amazonaws.com") else {"endpoint": endpoint, "virtual_hosted_style_request": False}
        ),
    )


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`.

    Raises:
        InputError: it names no bucket.
    """
    parts = urlsplit(uri)
    if not parts.netloc or parts.query or parts.fragment:
        raise InputError(f"store {uri}: not of the form s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def local_path(uri: str) -> Path:
    """The path that `file://…` or a plain path names.

    Raises:
        InputError: another scheme.
    """
    if uri.startswith(("file:///", "file://localhost/")):
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        raise InputError(f"{uri}: not a place on local files; name a folder or file://…")
    return Path(os.path.abspath(uri))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either not there or whole, whatever happens."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _key(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(f"store: {name!r} is no name for an object; use letters, digits, `._-`, in folders by `/`")
    return name
