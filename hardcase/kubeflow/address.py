"""Where Kubeflow is, the token it is spoken to with, and the errors of this package."""

import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

IN_CLUSTER: Final = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
TOKEN_VARIABLE: Final = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105  a name, as kfp's client uses it
PROJECTED_TOKEN: Final = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105  a path


class KubeflowError(Exception):
    """Kubeflow did not do what was asked.

    Attributes:
        about: `host`, `token`, `ca` or `namespace`, if that setting is at fault.
    """

    def __init__(self, message: str, about: str = "") -> None:
        super().__init__(message)
        self.about = about


class Refused(KubeflowError):
    """Kubeflow answered no, and will answer no again.

    Attributes:
        status: of HTTP; 0 if nothing was sent.
    """

    def __init__(self, message: str, status: int = 0, about: str = "") -> None:
        super().__init__(message, about)
        self.status = status


class Gone(Refused):
    """The run was there and is not any more."""


class Unreachable(KubeflowError):
    """Kubeflow gave no usable answer; what was asked may have been done."""


class Absent(Unreachable):
    """Nothing answers at the address, so nothing was done."""


@dataclass(frozen=True)
class Address:
    """Where Kubeflow is and how it is spoken to.

    Attributes:
        token: returns the bearer token; called at each request, because a token in a file is rotated.
    """

    url: str  # of the API, without `/apis`
    ui: str = ""  # where a person sees a run; the API's URL if empty
    namespace: str = ""  # of the user; empty for an installation for one user
    token: Callable[[], str] | None = field(default=None, repr=False)
    ca: str = ""  # file of certificates to trust; the system's if empty
    timeout: float = 30  # of one request, in seconds
    pause: float = 1  # before the second attempt, in seconds; doubled for each attempt after
    connection_attempts: int = 3  # how often a refused connection is tried. It carried out nothing
    before: Callable[[], None] | None = field(default=None, repr=False)  # called before each attempt

    def link(self, run_id: str, kind: str = "runs") -> str:
        """Return the UI URL of a run, or of a `recurringrun`."""
        return f"{self.ui or self.url}/#/{kind}/details/{run_id}"

    def headers(self) -> dict[str, str]:
        """Return the header that says who asks."""
        return {"Authorization": f"Bearer {self.token()}"} if self.token else {}

    def client_options(self) -> dict[str, Any]:
        """Return options of an httpx client. Redirects are not followed, because they lead to a login page.

        Raises:
            Refused: the file of certificates holds none.
        """
        try:
            trusted = trust_certificates(self.ca)
        except OSError as error:
            raise Refused(f"{self.ca}: no certificates can be read from there ({error})", about="ca") from error
        proxied = not _is_loopback(urlsplit(self.url).hostname or "")
        return {"base_url": self.url, "timeout": self.timeout, "verify": trusted, "trust_env": proxied}


@cache
def trust_certificates(ca: str) -> ssl.SSLContext:
    """Read certificates once: the system's are many."""
    return ssl.create_default_context(cafile=ca or None)


def find_address(
    host: str, *, ui: str = "", token: str = "", token_file: str = "", in_cluster: bool = False, **more: Any
) -> Address:
    """Return the address that a command line or a connection describes.

    Raises:
        Refused: the host is no URL, or a token would be sent by plain http.
    """
    url, read = parse_url(host), None
    if token:
        read = lambda: check_token(token, "the token")  # noqa: E731
    elif token_file:
        read = lambda: read_token(Path(token_file))  # noqa: E731
    if read and not _is_private(url, in_cluster):
        raise Refused(f"{host}: a token would go over plain http; use https", about="host")
    return Address(url, parse_url(ui) if ui else "", token=read, **more)


def parse_url(host: str) -> str:
    """Return the API's URL.

    Raises:
        Refused: it is none.
    """
    url = (host if "://" in host else f"https://{host}").rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if "@" in url:  # the message does not show the password
        raise Refused("the host's URL names a user or a password; use a token", about="host")
    if not valid or re.search(r"[\s?#]", url):
        example = "https://kubeflow.example/pipeline"
        raise Refused(f"{host}: not a URL of Kubeflow's API, such as {example}", about="host")
    return url.removesuffix("/apis/v2beta1")


def projected_token() -> str:
    """Return the path of the token that a pod is given for Kubeflow."""
    return os.environ.get(TOKEN_VARIABLE) or PROJECTED_TOKEN


def read_token(path: Path) -> str:
    """Return the token in a file."""
    try:
        return check_token(path.read_text(encoding="utf-8").strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: the token cannot be read from there ({error})", 401, "token") from error


def check_token(token: str, where: str) -> str:
    """Return a token that a header can hold; the message of a refusal does not show it."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Refused(f"{where}: there is no token in it", 401, "token")
    return token


def _is_private(url: str, in_cluster: bool) -> bool:
    """Return whether a token may be sent there: by TLS, to this machine, or in the cluster to a service of it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    service = in_cluster and host.endswith((".svc", ".svc.cluster.local"))
    return parts.scheme == "https" or service or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
