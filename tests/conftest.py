"""Fixtures and rules of all tests."""

import os
import socket
import sys

import pytest

LIMIT_S = 600

# Tests start many processes. Without compiled modules each of them would compile its imports again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# One thread a worker: the workers share the cores, and numbers do not depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test a limit: a test that hangs fails, and the rest runs on."""
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture
def unused_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
