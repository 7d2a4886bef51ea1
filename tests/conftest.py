"""What tests of all rooms use."""

import socket

import pytest


@pytest.fixture
def unused_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
