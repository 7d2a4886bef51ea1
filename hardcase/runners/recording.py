"""Make KFP's local cache honest, and show on the terminal what the steps print.

Stock `kfp.local` keys a task by the values of its inputs, here sha256 of attestations, which name the run that signed
them, and trusts a hit. Here the key takes what was attested by them and by those that they rest on. A hit counts as
none when its products, its attestation or one that it rests on are missing or altered.
"""

import io
import json
import logging
import time
from pathlib import Path
from typing import Any, TextIO

from kfp.local import cache as kfp_cache

from hardcase.database import database_uri
from hardcase.errors import HardcaseError
from hardcase.provenance.attestations import Attestation, fetch_attestation
from hardcase.provenance.products import check_product
from hardcase.provenance.signing import Keyring
from hardcase.runners.display import Bars
from hardcase.runtime.running import METRICS, PROGRESS_MARK
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import DIGEST, Store

logger = logging.getLogger(__name__)


class RecordingCache(kfp_cache.LocalCache):  # type: ignore[misc]  # kfp has no types
    """The cache of one run: `bars` show each hit, `store` holds attestations and products, `keys` are trusted."""

    def __init__(self, root: Path, bars: Bars, store: Store, keys: Keyring) -> None:
        super().__init__(str(root))
        self._bars, self._store, self._keys, self._home = bars, store, keys, root.parent
        self._links = dict[str, Attestation]()  # by sha256 of their attestations
        self._chains = dict[str, str]()  # digest of all that was attested up to an attestation, by its sha256
        self._sound = set[str]()  # sha256 of attestations that rest on none that is lost
        self.step = ""  # that is about to start

    def install(self) -> None:
        """Become the cache that `kfp.local` uses; call after `kfp.local.init`."""
        kfp_cache._cache_singleton = self
        kfp_cache._cache_singleton_root = self.cache_root

    def compute_key(self, component_name: str, *args: Any, arguments: dict[str, Any], **kwargs: Any) -> str:
        """Return the key of a task about to start, by the content of its inputs."""
        self.step = component_name.removeprefix("comp-")
        content = {name: self._content(value) for name, value in arguments.items()}
        key: str = super().compute_key(component_name, *args, arguments=content, **kwargs)
        return key

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the outputs of an equal earlier task, if the store still has all of them unaltered."""
        outputs: dict[str, Any] | None = super().get(key)
        if outputs is None:
            return None
        try:
            link = self._open(str(outputs["Output"]))
            for name, digest in link.products.items():
                check_product(self._store, digest, link.media_type(name))
            self._check_chain(link)
        except HardcaseError as error:
            logger.warning("%s: not served from the cache: %s", self.step, error)
            return None
        self._bars.show_end(self.step, "succeeded", 0, cached=True)
        self.step = ""
        return outputs

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep the outputs of a step that succeeded."""
        super().put(key, outputs)
        self.step = ""

    def _check_chain(self, link: Attestation) -> None:
        """Raise unless all attestations that a link rests on can be opened: no version can be made of others."""
        for digest in set(link.attested_by.values()) - self._sound:
            self._check_chain(self._open(digest))
            self._sound.add(digest)

    def _content(self, value: Any) -> Any:
        """Return what an attestation and those before it attest instead of its sha256; a plan without its `metrics`.

        Addresses in the home count, but not where the home is: it may be moved or copied.
        """
        if isinstance(value, dict):
            return {key: self._content(item) for key, item in value.items() if key != METRICS}
        if not isinstance(value, str):
            return value
        if not DIGEST.fullmatch(value):
            for address in (self._home.as_uri(), database_uri(self._home), str(self._home)):
                value = value.replace(address, "~")
            return value
        try:
            return self._describe_chain(value)
        except HardcaseError:
            return value

    def _describe_chain(self, digest: str) -> str:
        """Return the digest of all that was attested up to here.

        Two trainings may end with equal weights. What rests on one of them does not account for the other.
        """
        if digest not in self._chains:
            link = self._open(digest)
            before = sorted({self._describe_chain(earlier) for earlier in link.attested_by.values()})
            self._chains[digest] = bytes_digest(canonical_json([link.content, *before]))
        return self._chains[digest]

    def _open(self, digest: str) -> Attestation:
        if digest not in self._links:
            self._links[digest] = fetch_attestation(self._store, self._keys, digest)
        return self._links[digest]


class Router(io.TextIOBase):
    """Standard output while the pipeline runs: progress to the bars, the rest to the log of the step at work.

    `error` holds `message` and `exit_code` of the last step that failed.
    """

    def __init__(self, logs: Path, bars: Bars, cache: RecordingCache) -> None:
        self._logs, self._bars, self._cache = logs, bars, cache
        self._step, self._began, self._rest = "", 0.0, ""
        self._files: dict[str, TextIO] = {}
        self.error: dict[str, Any] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def write(self, text: str) -> int:
        """Take text, line by line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def fail(self, status: str) -> None:
        """End a step that did not say so itself, because its process was killed."""
        if self._step:
            self._bars.show_end(self._step, status, time.monotonic() - self._began, cached=False)
            self._step = ""

    def _line(self, line: str) -> None:
        _, mark, record = line.partition(PROGRESS_MARK)
        if mark:
            try:
                self._follow(json.loads(record))
                return
            except (ValueError, TypeError, KeyError):
                pass  # two writers mixed their lines: it goes to the log as it is
        name = self._step or self._cache.step or "kfp"  # a process may be killed before it says which step it is
        if name not in self._files:
            self._files[name] = (self._logs / f"{name}.log").open("a", encoding="utf-8", buffering=1)
        self._files[name].write(line + "\n")

    def _follow(self, record: dict[str, Any]) -> None:
        if "step" not in record:
            self._bars.show_progress(self._step, **record)
        elif record["state"] == "running":
            self.fail("failed")
            self._step, self._began = record["step"], time.monotonic()
            self._bars.show_start(self._step)
        elif record["step"] == self._step:
            if record["state"] != "succeeded":
                self.error = {"message": record["message"], "exit_code": record["exit_code"]}
            self._bars.show_end(self._step, record["state"], time.monotonic() - self._began, cached=False)
            self._step = ""

    def close(self) -> None:
        """Close the logs."""
        for file in self._files.values():
            file.close()
        super().close()
