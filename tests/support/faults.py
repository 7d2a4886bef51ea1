"""A proxy before an S3 endpoint that loses answers to requests, or answers in place of the endpoint."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Literal, get_args
from urllib.parse import urlsplit

from tests.support.s3 import credentials

Fault = Literal["500", "409", "cut"]  # of writes
WRITES = ("PUT", "POST", "DELETE")
ANSWERS = {
    "500": (500, b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"),
    "403": (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
    "409": (409, b"<Error><Code>ConditionalRequestConflict</Code><Message>Conflicting operation.</Message></Error>"),
}


@dataclass
class Faults:
    """What the proxy does: `fault` at write number `at`, from 1, of those that name a key with `within`.

    A 500 and a cut line come after the work. S3 answers 403, and 409 to a conditional write, instead of the work.
    """

    fault: Fault | Literal["403"] = "500"
    at: int = 0  # never
    within: str = ""
    last: int = 0  # times that the fault is repeated
    methods: tuple[str, ...] = WRITES
    each: bool = False  # strike the first write of every key instead
    writes: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def arm(self, fault: Fault, at: int, within: str = "", times: int = 1) -> None:
        """Count writes from 1 again, and fail from number `at` on."""
        self.fault, self.at, self.within, self.last, self.writes = fault, at, within, at + times - 1, []

    def deny(self, within: str, method: str = "GET") -> None:
        """Deny all requests of a method that name a key with `within`, as S3 does to a role without a right."""
        self.arm("500", 1, within, times=sys.maxsize)
        self.fault, self.methods = "403", (method,)

    def arm_each(self) -> None:
        """Fail from now on at the first write of every key, by each fault in turn."""
        self.arm("500", 0)
        self.each = True

    @property
    def struck(self) -> bool:
        """Return whether the write came that was to fail."""
        return 0 < self.at <= len(self.writes)

    def note(self, method: str, path: str, conditional: bool) -> str | None:
        """Note a request, and return the fault that strikes it."""
        if method not in self.methods or self.within not in path:
            return None
        with self.lock:
            fault = get_args(Fault)[len(self.writes) % 3] if self.each else self.fault
            if fault == "409" and not conditional:
                return None
            self.writes.append(path)
            strikes = self.writes.count(path) == 1 if self.each else self.at <= len(self.writes) <= self.last
            return fault if strikes else None


@contextmanager
def faulty_endpoint() -> Iterator[Faults]:
    """A proxy before the endpoint of the environment, to which the environment leads instead."""
    faults, target = Faults(), urlsplit(os.environ["AWS_ENDPOINT_URL"])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else an answer in two parts waits for 40 ms
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.note(self.command, self.path, "If-None-Match" in self.headers)
            if fault not in ("403", "409"):
                upstream = HTTPConnection(str(target.hostname), target.port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                status, content, headers = answer.status, answer.read(), answer.getheaders()
                upstream.close()
            if fault == "cut":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if fault:
                (status, content), headers = ANSWERS[fault], []
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            if self.command == "HEAD":
                length = next((value for name, value in headers if name.lower() == "content-length"), "0")
            else:
                length = str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Proxy, f"do_{method}", Proxy.answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with credentials(f"http://127.0.0.1:{server.server_address[1]}"):
            yield faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
