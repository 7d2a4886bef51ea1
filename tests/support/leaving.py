"""Works of two processes that end badly, for test_launching."""

import atexit
import os
from pathlib import Path

from hardcase.config import GrpoConfig


def run(config: GrpoConfig, scratch: Path, after_work: bool) -> None:
    """Abort at the way out, or at once."""
    if not after_work:
        os.abort()
    atexit.register(os.abort)
