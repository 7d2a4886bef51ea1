"""Reach Kubeflow in a cluster through `kubectl port-forward`."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hardcase.kubeflow.address import Absent
from hardcase.lifetime import die_with_parent, temporary_folder

# The UI's server passes the API's requests on, so the links work too.
SERVICE: Final = "svc/ml-pipeline-ui"
SERVICE_PORT: Final = 80
SECONDS_TO_FORWARD: Final = 30


class Forwarding:
    """A `kubectl port-forward` of ours on loopback, started again on the same port when it ends."""

    def __init__(self, context: str, namespace: str, log: Path) -> None:
        self._where = [*(["--context", context] if context else []), "--namespace", namespace]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def keep(self) -> None:
        """Start it, unless it runs.

        Raises:
            Absent: there is no kubectl, or it cannot reach the service.
        """
        if self._process is not None and self._process.poll() is None:
            return
        command = ["kubectl", *self._where, "port-forward", "--address", "127.0.0.1"]
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [*command, SERVICE, f"{self.port or ''}:{SERVICE_PORT}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  there are no threads
                )
            except FileNotFoundError as error:
                raise Absent("--port-forward: kubectl is not on the path; install it, or say --host") from error
        self.port = self._wait_for_port(self._process)

    def _wait_for_port(self, process: "subprocess.Popen[bytes]") -> int:
        limit = time.monotonic() + SECONDS_TO_FORWARD
        while time.monotonic() < limit:
            ended = process.poll() is not None
            output = self._log.read_text(encoding="utf-8", errors="replace")
            if port := re.search(r"^Forwarding from 127\.0\.0\.1:(\d+) ", output, re.MULTILINE):
                return int(port[1])
            if ended:
                last = (output.strip().splitlines() or ["it says nothing"])[-1]
                raise Absent(f"--port-forward: kubectl ended with {process.returncode}: {last}")
            time.sleep(0.05)
        self.stop()
        raise Absent(f"--port-forward: kubectl did not forward within {SECONDS_TO_FORWARD} s; is the cluster there?")

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def forward(context: str = "", namespace: str = "kubeflow") -> Iterator[Forwarding]:
    """Forward a port of loopback to Kubeflow in a cluster, as long as the context lasts."""
    with temporary_folder() as folder:
        forwarding = Forwarding(context, namespace, folder / "log")
        try:
            forwarding.keep()
            yield forwarding
        finally:
            forwarding.stop()
