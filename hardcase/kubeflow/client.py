"""Kubeflow Pipelines' API: how it is reached, and what its answers mean.

Built on `kfp_server_api`, the OpenAPI client inside `kfp.Client`. `kfp.Client` 2.17 itself will not do: its requests
have no time-out, it waits for ever on a cancelled run and asks Google for a new token when one expires, cannot describe
a run, prints links to standard output, and takes cookies and the namespace from a file in the home folder.
"""

import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import kfp_server_api
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH

from hardcase.errors import HardcaseError, InputError

ATTEMPTS: Final = 5
LONGEST_WAIT: Final = 60
PASSING: Final = frozenset({429, 500, 502, 503, 504})
IN_CLUSTER: Final = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
# A 500 of the API server that comes again whenever it is asked again: run-create-version-missing.json and
# run-create-parameter-large.json in tests/recordings/kubeflow.
LASTING: Final = {
    "ResourceNotFoundError": "something that the request names is gone from Kubeflow; launch again",
    "request is too large": "the parameters are too large for Kubernetes' store (1.5 MB); make --source or -p smaller",
}
# Kubeflow says no more of a missing right to upload: version-upload-forbidden.json.
NO_UPLOAD: Final = "Failed to create a pipeline version"
HINTS: Final = {
    400: "the request is at fault",
    401: "the token is missing, wrong or expired; renew it in --token-file or HARDCASE_KFP_TOKEN",
    403: "the token's account may not do this; see its role in the namespace",
    404: "there is no such thing there; is --host the API's?",
    409: "it is there already",
}


class Refused(InputError):
    """Kubeflow answered no, and will again; the user can mend it."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(HardcaseError):
    """Kubeflow gave no answer, or only that it cannot now; what was asked may have been done."""


class Absent(Unreachable):
    """Nobody is there; on the first contact, the host is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Address:
    """Where Kubeflow is and how it is spoken to.

    Attributes:
        url: of the API, without `/apis`.
        ui: where a person sees a run.
        token: gives the bearer token; asked at each request, for a token in a file is rotated.
        ca: file of certificates to trust; the system's if empty.
        timeout: of one request, in seconds.
        pause: between the second attempt and the third, in seconds; doubled for each one after.
        keep: called before each request.
    """

    url: str
    ui: str = ""
    token: Callable[[], str] | None = field(default=None, repr=False)
    ca: str = ""
    timeout: float = 30
    pause: float = 1
    keep: Callable[[], None] | None = None

    def link(self, kind: str, name: str) -> str:
        """In the UI, of one of the `runs` or a `recurringrun`."""
        return f"{self.ui or self.url}/#/{kind}/details/{name}"


def url_of(host: str) -> str:
    """The API's URL; `https` unless said otherwise.

    Raises:
        InputError: it is none.
    """
    url = (host if "://" in host else f"https://{host}").rstrip("/")
    parts = urlsplit(url)
    try:
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.username or re.search(r"[\s?#]", url):
        raise InputError(f"--host {host}: not a URL of Kubeflow's API, such as https://kubeflow.example/pipeline")
    return url.removesuffix("/apis/v2beta1")


def address_of(
    host: str,
    *,
    ui: str = "",
    token_file: Path | None = None,
    in_cluster: bool = False,
    ca: Path | None = None,
    keep: Callable[[], None] | None = None,
) -> Address:
    """The address that the command line and the environment say.

    Args:
        host: of the API; in the cluster, that of its service if empty.
        ui: base of links to the UI, if that is elsewhere.
        token_file: with the bearer token; else `HARDCASE_KFP_TOKEN` has it, or there is none.
        in_cluster: this is a pod, whose token for Kubeflow is projected into a file.
        ca: certificates to trust.
        keep: called before each request.

    Raises:
        InputError: it is no address, has no token where it should, or would send one in the clear.
    """
    if in_cluster:
        token_file = token_file or Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
        host = host or IN_CLUSTER
    if not host:
        raise InputError("no host: say --host URL, --port-forward or --in-cluster, or set HARDCASE_KFP_HOST")
    if ca and not ca.is_file():
        raise InputError(f"--ca {ca}: no such file; name certificates in PEM")
    url, token = url_of(host), _token(token_file)
    if token and not _private(url, in_cluster):
        raise InputError(f"--host {host}: a token would go over plain http; use https, or --port-forward")
    return Address(url, url_of(ui) if ui else "", token, str(ca or ""), keep=keep)


def _token(path: Path | None) -> Callable[[], str] | None:
    if path is None:
        said = os.environ.get("HARDCASE_KFP_TOKEN", "").strip()
        return (lambda: _checked(said, "HARDCASE_KFP_TOKEN")) if said else None

    def read() -> str:
        try:
            return _checked(path.read_text(encoding="utf-8").strip(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: the token cannot be read from there ({error}); mend --token-file") from error

    read()
    return read


def _checked(token: str, where: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{where}: there is no token in it")  # and it is not shown
    return token


def _private(url: str, in_cluster: bool) -> bool:
    """Whether a token may be sent there: by TLS, to this machine, or in the cluster to one of its services."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" or _near(host) or (in_cluster and host.endswith((".svc", ".svc.cluster.local")))


def _near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client(kfp_server_api.ApiClient):  # type: ignore[misc]
    """Upstream's client with time-outs, attempts, a check of what comes back, and errors that say what to do.

    What may have been carried out (a POST whose answer was lost) is not repeated here: the caller looks first.

    Args:
        address: of the API.
    """

    def __init__(self, address: Address) -> None:
        config = kfp_server_api.Configuration(host=address.url)
        config.ssl_ca_cert = address.ca or ssl.get_default_verify_paths().cafile
        parts = urlsplit(address.url)
        if not _near(host := parts.hostname or "") and not proxy_bypass(host):
            config.proxy = getproxies().get(parts.scheme)
        config.retries = urllib3.Retry(
            ATTEMPTS - 1,
            connect=2,  # a name mistyped should not take long to say
            other=0,  # a certificate will be no better
            redirect=False,  # it leads to a login page
            status_forcelist=PASSING,
            raise_on_status=False,
            backoff_factor=address.pause,
            backoff_max=LONGEST_WAIT,
            retry_after_max=LONGEST_WAIT,
        )
        super().__init__(config)
        self.address = address

    def request(self, method: str, url: str, **more: Any) -> Any:
        """One request, tried again where that does no harm.

        Raises:
            Refused: it makes no sense to try again.
            Unreachable: it was tried often enough, or may have been done.
        """
        if self.address.keep:
            self.address.keep()
            try:
                return self._asked(method, url, **more)
            except Absent:
                self.address.keep()  # it ended after we looked
        return self._asked(method, url, **more)

    def _asked(self, method: str, url: str, *, headers: Mapping[str, str], **more: Any) -> Any:
        address, headers = self.address, dict(headers)
        if address.token:
            headers["Authorization"] = f"Bearer {address.token()}"
        more |= {"headers": headers, "_request_timeout": (address.timeout, address.timeout)}
        what = f"Kubeflow, {method} {self._path(url)}"
        try:
            answer = super().request(method, url, **more)
        except kfp_server_api.ApiException as error:
            raise _answered(what, error) from None
        except urllib3.exceptions.HTTPError as error:
            raise _unanswered(what, error, address.url) from None
        try:
            fine = isinstance(json.loads(answer.data or b"{}"), dict)
        except ValueError:
            fine = False
        if not fine:
            raise Refused(f"{what}: the answer is no JSON; is {address.url} the API, or does a login stand before it?")
        return answer

    def _path(self, url: str) -> str:
        return url.removeprefix(f"{self.address.url}/apis/v2beta1")


def _answered(what: str, error: kfp_server_api.ApiException) -> HardcaseError:
    status = error.status or 0
    try:
        told = json.loads(error.body or b"{}")
        told = told.get("error_message") or told.get("message") or told.get("error") or ""
    except (ValueError, AttributeError):
        told = ""
    hint = HINTS.get(status, "a redirect: a login stands before it" if 300 <= status < 400 else "")
    if status == 400 and told == NO_UPLOAD:
        hint = (
            "the token's account may not upload pipelines; bind its role to it (docs/how-to/install-on-kubernetes.md)"
        )
    lasting = next((each for words, each in LASTING.items() if status == 500 and words in str(told)), "")
    # The cause stands at the end of Kubeflow's messages.
    reason = ": ".join(filter(None, [lasting or hint, _shorten(" ".join(str(told).split()))])) or str(error.reason)
    message = f"{what}: HTTP {status}, {reason}"
    return Unreachable(message) if (status >= 500 or status == 429) and not lasting else Refused(message, status)


def _shorten(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _unanswered(what: str, error: urllib3.exceptions.HTTPError, url: str) -> HardcaseError:
    reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return Absent(f"{url}: there is no such host; mend --host")
    if isinstance(reason, urllib3.exceptions.SSLError):
        return Refused(f"{url}: its certificate is not trusted ({_brief(reason)}); name its authority by --ca")
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        return Absent(f"{url}: nothing answers there ({_brief(reason)}); mend --host")
    if isinstance(reason, urllib3.exceptions.TimeoutError):
        return Unreachable(f"{what}: no answer in time")
    return Unreachable(f"{what}: the connection broke ({_brief(reason)})")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()).rpartition(">: ")[2][:200]


@dataclass(frozen=True)
class Sent:
    """A request that was not sent; `path` is below `/apis/v2beta1`."""

    method: str
    path: str
    query: dict[str, Any]
    body: Any


class Rehearsal(Client):
    """Sends nothing: keeps what it would send, and answers as a Kubeflow that has none of it yet."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.sent: list[Sent] = []

    def request(self, method: str, url: str, **more: Any) -> Any:
        """Keep it."""
        query = {name: value for name, value in more.get("query_params") or [] if value != ""}
        body, path = more.get("body"), unquote(self._path(url))
        for name, (file, content, kind) in more.get("post_params") or []:
            body = {name: {"file": file, "type": kind, "bytes": len(content)}}
        self.sent.append(Sent(method, path, query, body))
        made = {f"{name}_id": f"<id of the {name.replace('_', ' ')}>" for name in THINGS}
        return _Answer(json.dumps({} if method == "GET" else {**made, "state": "PENDING"}).encode())


THINGS: Final = ("pipeline", "pipeline_version", "experiment", "run", "recurring_run")


class _Answer:
    def __init__(self, data: bytes) -> None:
        self.data: Any = data
        self.status = 200

    def getheader(self, name: str, default: str | None = None) -> str | None:
        return default

    def getheaders(self) -> Mapping[str, str]:
        return {}
