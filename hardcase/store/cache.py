"""Objects of a far store kept near: files by sha256 in one folder; the least lately used go when it grows too big.

Several processes share it. A file appears whole or not at all, and one that another process has just removed was read
to the end or is fetched again; what is read is verified by the store as everything is.
"""

import fcntl
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObjectCache:
    """A folder of objects.

    Attributes:
        folder: where.
        limit: bytes that it may hold.
    """

    folder: Path
    limit: int

    def get(self, digest: str) -> bytes | None:
        """The bytes kept under that digest, if any; they count as just used."""
        path = self.folder / digest
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Keep `data`, unless it is more than all may be; a disk that takes no more is no error."""
        if len(data) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                file.write(data)
            Path(file.name).replace(self.folder / digest)
            self._make_room()
        except OSError as error:
            logger.warning("cache %s: %s; objects are fetched each time", self.folder, error.strerror)

    def drop(self, digest: str) -> None:
        """Forget what is kept under that digest."""
        (self.folder / digest).unlink(missing_ok=True)

    def _make_room(self) -> None:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process removes at a time, or all would remove too much
            kept = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in self._files())
            excess = sum(size for _, size, _ in kept) - self.limit
            for _, size, path in kept:
                if excess <= 0:
                    break
                Path(path).unlink(missing_ok=True)
                excess -= size

    def _files(self) -> list[os.DirEntry[str]]:
        return [entry for entry in os.scandir(self.folder) if not entry.name.startswith(".")]


def open_cache() -> ObjectCache:
    """In `$HARDCASE_CACHE`, `~/.cache/hardcase` by default; up to `$HARDCASE_CACHE_GB`, 20 by default."""
    folder = os.environ.get("HARDCASE_CACHE") or Path.home() / ".cache" / "hardcase"
    return ObjectCache(Path(folder), int(float(os.environ.get("HARDCASE_CACHE_GB") or 20) * 10**9))
