"""A shard that never ends, for tests of how nodes are ended."""

import os
import time
from pathlib import Path


def run(shard: str, scratch: Path, answers: Path) -> None:
    """Say that it began, and sleep."""
    (scratch / "began").write_text(str(os.getpid()))
    time.sleep(600)
