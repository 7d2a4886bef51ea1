"""Where a store is: a folder or a prefix of a bucket, and how either is opened."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from obstore.store import LocalStore, ObjectStore, S3Store

from hardcase.errors import HardcaseError, InputError
from hardcase.store.ranges import note_use
from hardcase.store.s3_errors import describe_error

# Control characters and surrogates have no use in a name, and a backslash separates folders on other systems.
ODD: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\\\\]")
# AWS accepts no bucket named like an IPv4 address or with two dots in a row.
BUCKET: Final = re.compile(r"(?!\d+(?:\.\d+){3}$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)


def open_objects(uri: str) -> tuple[str, ObjectStore]:
    """Return the full URI of a store and its obstore client, or raise `InputError`.

    On S3 the endpoint, region and credentials are those of the AWS chain, as boto3 resolves them (environment, profile,
    role of the pod or the machine; `AWS_ENDPOINT_URL` for another endpoint). Server errors, time-outs and throttling
    are retried with increasing delays.
    """
    if not uri.startswith("s3://"):
        path = parse_local_path(uri)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"store {uri}: cannot create its folder: {error.strerror}; name another") from error
        return path.as_uri(), LocalStore(path)
    bucket, prefix = split_s3(uri)
    import boto3  # not needed for local files, and slow to import
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session()
        if (credentials := session.get_credentials()) is None:
            raise InputError(f"store {uri}: no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret")
        # obstore panics at a line end in a token.
        if not all(text.isascii() and text.isprintable() for text in credentials.get_frozen_credentials() if text):
            raise InputError(f"store {uri}: an AWS key or token has a line end, or a letter that none has; correct it")
        client = session.client("s3", region_name=session.region_name or "us-east-1")
    except (BotoCoreError, ValueError) as error:  # the latter of an endpoint that is no URL
        reason = describe_error(error, "check AWS_ENDPOINT_URL")
        raise InputError(f"store {uri}: {reason}") from error
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    if "@" in endpoint or not re.fullmatch("[a-z0-9-]+", region):
        raise InputError(
            f"store {uri}: AWS_ENDPOINT_URL is to name no user, and AWS_REGION is to be a name such as eu-central-1"
        )
    note_use()
    return f"s3://{bucket}/{prefix}".rstrip("/"), S3Store(
        bucket,
        prefix=prefix or None,
        region=region,
        credential_provider=Boto3CredentialProvider(session),
        # A bucket with Object Lock requires a checksum, and every bucket refuses an upload that does not match it.
        checksum_algorithm="SHA256",
        retry_config={"max_retries": 8, "retry_timeout": timedelta(minutes=3)},
        client_options={"timeout": timedelta(minutes=5), "allow_http": endpoint.startswith("http://")},
        **(
            {} if endpoint.endswith(".amazonaws.com") else {"endpoint": endpoint, "virtual_hosted_style_request": False}
        ),
    )


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/prefix` into bucket and prefix, without decoding either, or raise `InputError`."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.removesuffix("/")
    if not uri.startswith("s3://") or not BUCKET.fullmatch(bucket):
        raise InputError(f"store {uri!r}: not of the form s3://bucket/prefix, with a bucket as S3 names them")
    if prefix and (not is_plain(prefix) or re.search("[%?#]", prefix)):
        raise InputError(
            f"store {uri!r}: not of the form s3://bucket/prefix; leave out of the prefix empty parts, `.`, `..`, "
            "`%`, `?`, `#`, backslashes and control characters"
        )
    return bucket, prefix


def parse_local_path(uri: str) -> Path:
    """Return the path of a `file:///…` URI or a plain path; raise `InputError` for other URIs and for `..`."""
    if uri.startswith(("file:///", "file://localhost/")) and not re.search("[?#\0-\x1f\x7f\ud800-\udfff]", uri):
        path = os.fsdecode(unquote_to_bytes("/" + uri.removeprefix("file://").partition("/")[2]))
        if "\0" not in path and ".." not in path.split("/"):
            return Path(path)
    elif uri and "\0" not in uri and "://" not in uri and not uri.lower().startswith(("file:", "s3:")):
        return Path(os.path.abspath(uri))
    raise InputError(f"{uri!r}: not a local path; name a folder or file:///…, without `..`, `?` or `#`")


def refuse_links(uri: str, name: str) -> str:
    """Return a name of the store at `uri`; raise `HardcaseError` if it or one of its folders is a symlink."""
    if uri.startswith("file:") and is_linked(parse_local_path(uri), name):
        raise HardcaseError(f"store {uri}: {name} is a symlink or is behind one; replace the symlink by its target")
    return name


def is_plain(name: str) -> bool:
    """Return whether a relative name stays within its folder on every system."""
    return not ODD.search(name) and {"", ".", ".."}.isdisjoint(name.split("/"))


def is_linked(root: Path, name: str) -> bool:
    """Return whether a name is a symlink in a folder, or is behind one."""
    path = Path(os.path.realpath(root), name)
    return os.path.realpath(path) != str(path)
