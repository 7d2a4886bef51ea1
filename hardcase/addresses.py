"""Addresses that users name: of servers by http, and of hosts."""

import socket
import time
from typing import Final
from urllib.parse import urlsplit

from hardcase.errors import InputError

ATTEMPTS: Final = 3  # to find a host, a second apart, where a name server gives no answer


def split_url(url: str) -> tuple[str, int] | None:
    """Return host and port of an `http://` or `https://` URL; None where it is none."""
    try:
        parts = urlsplit(url)
        default = {"http": 80, "https": 443}[parts.scheme]
        host, port = parts.hostname or "", parts.port
    except (ValueError, KeyError):
        return None
    valid = host and port != 0 and url.isprintable() and " " not in url
    return (host, port or default) if valid else None


def require_host(variable: str, host: str, port: int) -> None:
    """Raise `InputError` if a host that a variable names has no address."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:  # the latter of a label that is too long
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            if not again or attempt == ATTEMPTS:
                reason = error.strerror if isinstance(error, OSError) else "no name of a host"
                raise InputError(
                    f"{variable}: host {host[:255]} is not found: {reason}; correct it, or unset it"
                ) from error
            time.sleep(1)
        else:
            return
