"""Read objects on S3 in part, and in forked processes.

obstore's requests are served by threads that a forked process does not have, so there they would never return. A forked
process, such as a worker of PyTorch's DataLoader, reads by boto3 instead, with a client of its own.
"""

import io
import os
from collections.abc import Callable
from functools import cache
from typing import Any

_used, _forked = False, False


def note_use() -> None:
    """Note that this process uses obstore on S3."""
    global _used  # noqa: PLW0603  the state of a process
    _used = True


def is_forked() -> bool:
    """Return whether this process was forked from one that used obstore on S3."""
    return _forked


def _note_fork() -> None:
    global _forked  # noqa: PLW0603
    _forked = _used


os.register_at_fork(after_in_child=_note_fork)


@cache
def _open_client(process: int) -> Any:
    import boto3

    return boto3.client("s3")


def read_in_fork(bucket: str, key: str, span: tuple[int, int] | None) -> bytes:
    """Return an object's bytes, or those of a span (start, end); raise `OSError` if it cannot be read."""
    from botocore.exceptions import BotoCoreError, ClientError

    chosen = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    try:
        data: bytes = _open_client(os.getpid()).get_object(Bucket=bucket, Key=key, **chosen)["Body"].read()
    except ClientError as error:
        missing = error.response["Error"]["Code"] in ("NoSuchKey", "404")
        raise (FileNotFoundError if missing else OSError)(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
    return data


class RangeFile(io.RawIOBase):
    """A file of `size` bytes whose parts `read_span(start, end)` returns when they are read."""

    def __init__(self, read_span: Callable[[int, int], bytes], size: int) -> None:
        self._read_span, self._size, self._at = read_span, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, origin: int = io.SEEK_SET) -> int:
        """Go to a position, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[origin]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes, and return how many bytes were read."""
        view = memoryview(buffer)
        end = min(self._at + len(view), self._size)
        data = self._read_span(self._at, end) if end > self._at else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
