"""A proxy before an S3 endpoint that denies some requests, as S3 does to a role without a right."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

from tests.support.s3 import credentials

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@contextmanager
def denying_endpoint(within: str, method: str = "GET") -> Iterator[None]:
    """Lead to a proxy that denies requests of a method whose path has `within`."""
    target = urlsplit(os.environ["AWS_ENDPOINT_URL"])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else an answer in two parts waits for 40 ms
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content, headers = 403, DENIED, list[tuple[str, str]]()
            if self.command != method or within not in self.path:
                upstream = HTTPConnection(str(target.hostname), target.port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                status, content, headers = answer.status, answer.read(), answer.getheaders()
                upstream.close()
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

    for method_name in ("GET", "PUT"):
        setattr(Proxy, f"do_{method_name}", Proxy.answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with credentials(f"http://127.0.0.1:{server.server_port}"):
                yield
        finally:
            server.shutdown()
