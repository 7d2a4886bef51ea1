"""KFP's local cache made honest and talkative.

Stock `kfp.local` keys a task by the values of its inputs, here sha256 of attestations, which name the run that signed
them, and trusts a hit. Here the key takes what was attested, and a hit whose attestation or products are missing or
altered is none. As the cache is asked before each task and told after it,
it knows the state of each, and which of them is speaking on standard output.
"""

import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TextIO

from kfp.local import cache as kfp_cache

from hardcase.errors import HardcaseError
from hardcase.provenance.attestations import Link
from hardcase.report.summary import StepOutcome
from hardcase.runtime.materials import keyring, open_attestation
from hardcase.runtime.running import PROGRESS_MARK
from hardcase.store.store import Store

logger = logging.getLogger(__name__)


class Display(Protocol):
    """What shows a run as it goes."""

    def step_started(self, step: str) -> None: ...

    def progress(self, step: str, what: str, done: int, total: int) -> None: ...

    def step_ended(self, step: str, status: str, seconds: float, cached: bool) -> None: ...


class RecordingCache(kfp_cache.LocalCache):  # type: ignore[misc]  # kfp has no types
    """The cache of one run.

    Args:
        root: folder of the entries.
        steps: names in order.
        display: told of each step.
        store: where attestations lie.
        check: asked about the attestation of a hit; raises a `HardcaseError` to refuse it.

    Attributes:
        records: what became of each step.
        links: attested links of the steps that are done.
        attestations: sha256 of their envelopes.
    """

    def __init__(
        self, root: Path, steps: tuple[str, ...], display: Display, store: Store, check: Callable[[Link], None]
    ) -> None:
        super().__init__(str(root))
        self.records = {step: StepOutcome() for step in steps}
        self.links, self.attestations = dict[str, Link](), dict[str, str]()
        self._display, self._store, self._check = display, store, check
        self._own = threading.local()  # the shards of a step run in threads

    @property
    def current(self) -> str | None:
        """The step at work in this thread, or in any."""
        running = (step for step, record in self.records.items() if record.status == "running")
        return getattr(self._own, "step", None) or next(running, None)

    def install(self) -> None:
        """Become the cache that `kfp.local` uses; call after `kfp.local.init`."""
        kfp_cache._cache_singleton = self
        kfp_cache._cache_singleton_root = self.cache_root

    def compute_key(self, component_name: str, *args: Any, arguments: dict[str, Any], **kwargs: Any) -> str:
        """The key of a task about to start, by the content of its inputs."""
        # A component that is used twice is numbered.
        step = re.sub(r"-\d+$", "", component_name.removeprefix("comp-"))
        self._own.step, self._own.began = step, time.monotonic()
        self.records[step] = replace(self.records[step], status="running")
        known = {digest: self.links[done].content for done, digest in self.attestations.items()}
        content = {name: known.get(str(value), value) for name, value in arguments.items()}
        key: str = super().compute_key(component_name, *args, arguments=content, **kwargs)
        return key

    def get(self, key: str) -> dict[str, Any] | None:
        """The outputs of an equal task done before, if they are still what they were."""
        step = str(self.current)
        outputs: dict[str, Any] | None = super().get(key)
        if outputs is not None:
            try:
                attestation = self._open(outputs)
                self._check(attestation[1])
            except HardcaseError as error:
                logger.warning("%s: not served from the cache: %s", step, error)
                outputs = None
        if outputs is None:
            self._display.step_started(step)
        else:
            self._end("succeeded", cached=True, attestation=attestation)
        return outputs

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep the outputs of a task just done."""
        super().put(key, outputs)
        self._end("succeeded", cached=False, attestation=self._open(outputs))

    def fail(self) -> None:
        """Mark the step at work as failed."""
        self._end("failed", cached=False)

    def _open(self, outputs: dict[str, Any]) -> tuple[str, Link]:
        digest = str(outputs["Output"])
        return digest, open_attestation(digest, self._store, keyring())

    def _end(self, status: str, cached: bool, attestation: tuple[str, Link] | None = None) -> None:
        step = str(self.current)
        seconds = round(time.monotonic() - getattr(self._own, "began", time.monotonic()), 2)
        self.records[step] = StepOutcome(status, seconds, cached)
        if attestation is not None:
            self.attestations[step], self.links[step] = attestation
        self._own.step = None
        self._display.step_ended(step, status, seconds, cached)


class Router(io.TextIOBase):
    """Standard output while the pipeline runs: progress to the display, the rest to the log of the step at work."""

    def __init__(self, cache: RecordingCache, logs: Path, display: Display) -> None:
        self._cache, self._logs, self._display = cache, logs, display
        self._rest = ""
        self._files: dict[str, TextIO] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Take text, line by line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def _line(self, line: str) -> None:
        step = self._cache.current
        _, mark, record = line.partition(PROGRESS_MARK)
        if mark and step is not None:
            try:
                self._display.progress(step, **json.loads(record))
                return
            except (ValueError, TypeError):
                pass  # two writers mixed their lines: it goes to the log as it is
        name = step or "kfp"
        if name not in self._files:
            self._files[name] = (self._logs / f"{name}.log").open("a", encoding="utf-8", buffering=1)
        self._files[name].write(line + "\n")

    def close(self) -> None:
        """Close the logs."""
        for file in self._files.values():
            file.close()
        super().close()
