"""Cache objects of a remote store as files by sha256 in one folder, and evict the least recently used.

Several processes share the folder. Files appear only when complete. A file that another process has just evicted is
either read to its end or fetched again. The store verifies cached bytes like all others.
"""

import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hardcase.errors import InputError
from hardcase.lifetime import hold_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObjectCache:
    """Read and write objects in `folder`, at most `limit` bytes together."""

    folder: Path
    limit: int

    def get(self, digest: str) -> bytes | None:
        """Return the object with that digest and mark it as used, or return None."""
        path = self.folder / digest
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Write `data`, unless it exceeds the limit; a full disk is only a warning."""
        if len(data) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                file.write(data)
            Path(file.name).replace(self.folder / digest)
            self._evict()
        except OSError as error:
            logger.warning("cache %s: %s; objects are not cached", self.folder, error.strerror)

    def _evict(self) -> None:
        (lock := self.folder / ".lock").touch()
        with hold_lock(lock):  # one process at a time, or together they would evict too much
            files = [entry for entry in os.scandir(self.folder) if not entry.name.startswith(".")]
            by_age = sorted((file.stat().st_mtime_ns, file.stat().st_size, file.path) for file in files)
            excess = sum(size for _, size, _ in by_age) - self.limit
            for _, size, path in by_age:
                if excess <= 0:
                    break
                Path(path).unlink(missing_ok=True)
                excess -= size


def open_cache() -> ObjectCache:
    """Open this machine's cache: `$HARDCASE_CACHE` (`~/.cache/hardcase`), up to `$HARDCASE_CACHE_GB` (20).

    Raises:
        InputError: the limit is no number.
    """
    folder = os.environ.get("HARDCASE_CACHE") or Path.home() / ".cache" / "hardcase"
    limit = os.environ.get("HARDCASE_CACHE_GB") or "20"
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", limit, re.ASCII):
        raise InputError(f"HARDCASE_CACHE_GB={limit}: no number of gigabytes; set it to 20, say")
    return ObjectCache(Path(folder), int(float(limit) * 10**9))
