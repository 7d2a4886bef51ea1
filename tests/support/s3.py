"""S3 endpoints on loopback: moto's, and one that cuts corners."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import ClassVar
from unittest.mock import patch
from urllib.request import Request, urlopen

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "eu-central-1"}

OPEN: list[ThreadedMotoServer] = []


@contextmanager
def credentials(endpoint: str) -> Iterator[None]:
    """The AWS chain finds this endpoint and nothing of the machine's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with patch.dict(os.environ, {**kept, **KEYS, "AWS_ENDPOINT_URL": endpoint}, clear=True):
        yield


@contextmanager
def moto_bucket(name: str, *, versioned: bool = False, object_lock: bool = False) -> Iterator[None]:
    """A bucket of that name on a moto server, for as long as this lasts; Object Lock has versions."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    OPEN.append(server)
    host, port = server.get_host_and_port()
    try:
        with credentials(f"http://{host}:{port}"):
            client = boto3.client("s3")
            client.create_bucket(
                Bucket=name,
                CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
                ObjectLockEnabledForBucket=object_lock,
            )
            if versioned:
                client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
            yield
    finally:
        OPEN.remove(server)
        if not OPEN:  # all servers of a process share what they keep
            urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        server.stop()


class _Sloppy(BaseHTTPRequestHandler):
    """Keeps what it is given, whatever the conditions; is too busy for the first two of every request for an object."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    sums: ClassVar[dict[str, str | None]] = {}  # what moto takes only from boto3
    busy: ClassVar[dict[str, int]] = {}
    lock: ClassVar[Lock] = Lock()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (("ETag", '"x"'), ("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _too_busy(self) -> bool:
        if "?" in self.path and "list-type" not in self.path:
            return False  # boto3 waits for seconds
        with self.lock:
            asked = self.busy[self.command + self.path] = self.busy.get(self.command + self.path, 0) + 1
        if asked <= 2:
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
        return asked <= 2

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._too_busy():
            self.objects[self.path] = body
            self.sums[self.path] = self.headers.get("x-amz-checksum-sha256")
            self._answer(200)

    def do_GET(self) -> None:
        if self._too_busy():
            return
        if "?" in self.path:
            self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self._answer(200, self.objects[self.path][int(wanted[1]) : int(wanted[2]) + 1])
        elif self.path in self.objects:
            self._answer(200, self.objects[self.path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")


@contextmanager
def sloppy_endpoint() -> Iterator[dict[str, str | None]]:
    """An endpoint that calls itself S3-compatible; the sha256 that each upload carried, by path."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sloppy)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with credentials(f"http://127.0.0.1:{server.server_address[1]}"):
            yield _Sloppy.sums
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
