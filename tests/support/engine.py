"""The few calls of the Docker API that a run makes, on a Unix socket; a container is a process of this machine."""

import json
import os
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOGGED = {"LogConfig": {"Type": "json-file"}}


@dataclass
class Container:
    """One that was created."""

    body: dict[str, Any]
    process: "subprocess.Popen[bytes] | None" = None


@dataclass
class Engine:
    """What is asked of it, and what goes wrong.

    Attributes:
        images: that it has.
        kill: steps whose container is killed as soon as it runs.
        lose: steps whose container is gone when asked how it ended.
        about: what it says of itself.
        left: containers of a launcher that was killed; label by id.
        created: the bodies of all requests to create a container.
        removed: ids of containers removed.
    """

    images: tuple[str, ...] = ("hardcase/python-light:0.1.0", "hardcase/python-train:0.1.0")
    kill: set[str] = field(default_factory=set)
    lose: set[str] = field(default_factory=set)
    about: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    containers: dict[str, Container] = field(default_factory=dict)

    @contextmanager
    def serving(self, socket: Path) -> Iterator[None]:
        """Answer on that socket."""
        engine = self

        class Handler(_Handler):
            """Of this engine."""

        Handler.engine = engine
        with _Server(str(socket), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()

    def steps(self) -> list[str]:
        """The steps that containers were created for, in order."""
        return [step for body in self.created if (step := step_of(body))]


def step_of(body: dict[str, Any]) -> str:
    """The step that a container is to run, or nothing."""
    command = body["Cmd"]
    return command[command.index("--function_to_execute") + 1] if "--function_to_execute" in command else ""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> Any:
        request, _ = super().get_request()
        return request, ("engine", 0)


class _Handler(BaseHTTPRequestHandler):
    engine: Engine

    def do_GET(self) -> None:
        parts = self._parts()
        if parts == ["version"]:
            self._answer(200, {"ApiVersion": "1.44"})
        elif parts == ["info"]:
            self._answer(200, {"SecurityOptions": [], **self.engine.about})
        elif parts == ["containers", "json"]:
            self._answer(200, [{"Id": name} for name in self.engine.left if name not in self.engine.removed])
        elif parts[0] == "images":
            name = "/".join(parts[1:-1])
            if name in self.engine.images or name.startswith("sha256:"):
                self._answer(200, {"Id": f"sha256:{'1' * 64}", "RepoTags": [name], "RepoDigests": []})
            else:
                self._answer(404, {"message": f"{name}: image not known"})
        elif parts[-1] == "json":
            self._answer(200, {"Id": parts[1], "Config": {"Tty": False}, "HostConfig": LOGGED})
        elif parts[-1] == "logs":
            self._logs(self.engine.containers[parts[1]])

    def do_POST(self) -> None:
        parts = self._parts()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if parts == ["containers", "create"]:
            name = f"{len(self.engine.created):064x}"
            self.engine.created.append(body)
            self.engine.containers[name] = Container(body)
            self._answer(201, {"Id": name, "Warnings": []})
            return
        container = self.engine.containers[parts[1]]
        if parts[-1] == "start":
            # What the image would be: this environment.
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            told = dict(line.split("=", 1) for line in container.body.get("Env") or [])
            container.process = subprocess.Popen(
                container.body["Cmd"],
                env={"PATH": path, "HOME": "/tmp", "PYTHONPATH": str(Path(__file__).parents[2]), **told},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            if step_of(container.body) in self.engine.kill:
                container.process.kill()
            self._answer(204)
        elif parts[-1] == "wait":
            if step_of(container.body) in self.engine.lose:
                self._answer(404, {"message": "no such container"})
            else:
                code = container.process.wait()
                self._answer(200, {"StatusCode": 128 - code if code < 0 else code})

    def do_DELETE(self) -> None:
        self.engine.removed.append(self._parts()[1])
        self._answer(204)

    def _parts(self) -> list[str]:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        return parts[1:] if parts[0].startswith("v1.") else parts

    def _logs(self, container: Container) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.multiplexed-stream")
        self.end_headers()
        while data := container.process.stdout.read1(1 << 16):
            self.wfile.write(struct.pack(">BxxxL", 1, len(data)) + data)
            self.wfile.flush()

    def _answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if data:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
