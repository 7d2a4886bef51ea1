"""One request: how it looks, what its answer means, and when it is tried again. No socket is used here.

A POST whose answer was lost may have been carried out. It is not repeated: the caller looks first.
"""

import random
import re
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import httpx

from hardcase.kubeflow.address import Absent, Address, KubeflowError, Refused, Unreachable

ATTEMPTS: Final = 5
LONGEST_WAIT: Final = 60.0
TRANSIENT: Final = frozenset({429, 500, 502, 503, 504})
NOT_DONE: Final = frozenset({429, 503})
# A 500 of the API server that comes again whenever it is asked again: run-create-version-missing.json and
# run-create-parameter-large.json in tests/recordings/kubeflow.
PERMANENT: Final = {
    "ResourceNotFoundError": "something that the request names is gone from Kubeflow; launch again",
    "request is too large": "the parameters are too large for Kubernetes' store (1.5 MB); make them smaller",
}
# A missing right to upload is a 400 with these words and no reason: version-upload-forbidden.json.
UPLOAD_REFUSED: Final = re.compile("Failed to create a pipeline( version)?")
HINTS: Final = {
    400: "the request is at fault",
    401: "the token is missing, wrong or expired",
    403: "the token's account may not do this; see its role in the namespace",
    404: "there is no such thing there",
    409: "it is there already",
}
ABOUT: Final = {401: "token", 404: "host"}


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str  # of HTTP
    path: str  # below `/apis/v2beta1/`
    query: Mapping[str, Any] = field(default_factory=dict)  # without what is empty
    body: Mapping[str, Any] | None = None  # sent as JSON, without what is empty
    files: Mapping[str, tuple[str, bytes, str]] | None = None  # sent as a form

    @property
    def repeatable(self) -> bool:
        """Return whether doing it twice is doing it once: only the creation of something is not."""
        return self.method != "POST" or ":" in self.path

    def options(self, address: Address) -> dict[str, Any]:
        """Return options of an httpx request.

        Raises:
            Refused: there is no token where one should be.
        """
        return {
            "method": self.method,
            "url": f"/apis/v2beta1/{self.path}",
            "params": drop_empty(self.query),
            "json": None if self.body is None else drop_empty(self.body),
            "files": self.files,
            "headers": address.headers(),
        }

    def judge(self, answer: "Answer", attempt: int, address: Address) -> dict[str, Any] | float:
        """Return the content of the answer to that attempt (from 0), or the seconds to wait for the next attempt.

        Raises:
            Refused: another attempt would get the same answer.
            Unreachable: it was tried often enough, or it may have been done.
        """
        what, attempts = f"Kubeflow, {self.method} {self.path}", ATTEMPTS
        if isinstance(answer, KubeflowError):
            raise answer
        if isinstance(answer, httpx.HTTPError):
            problem = explain_silence(what, answer, address.url)
            not_done = isinstance(answer, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            attempts = address.connection_attempts if not_done else ATTEMPTS
        else:
            if answer.is_success:
                return read_content(answer, what, address.url)
            problem = explain_refusal(what, answer)
            not_done = answer.status_code in NOT_DONE
            attempts = ATTEMPTS if answer.status_code in TRANSIENT else 0
        if isinstance(problem, Refused) or not attempts:
            raise problem
        if attempt + 1 >= attempts or not (self.repeatable or not_done):
            raise type(problem)(f"{problem}; tried {attempt + 1} times", problem.about)
        asked = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
        wait = float(asked) if asked.isdecimal() else address.pause * 2**attempt * random.uniform(0.75, 1.25)
        return min(wait, LONGEST_WAIT)


@dataclass(frozen=True)
class Look:
    """A run as it was just now."""

    run: Mapping[str, Any]


@dataclass(frozen=True)
class Missed:
    """A look at a run that got no usable answer, and the seconds since the last one."""

    error: KubeflowError
    silent: float


Answer: TypeAlias = httpx.Response | httpx.HTTPError | KubeflowError
Result = TypeVar("Result")
# What a rule yields: a request, whose answer it is sent, seconds to wait, or what it saw of a run.
Flow: TypeAlias = Generator[Request | float | Look | Missed, Any, Result]


def ask(request: Request, address: Address) -> Flow[dict[str, Any]]:
    """Return the answer to a request, tried again where that does no harm."""
    for attempt in range(max(ATTEMPTS, address.connection_attempts)):
        outcome = request.judge((yield request), attempt, address)
        if isinstance(outcome, dict):
            return outcome
        yield outcome
    raise AssertionError("judge allows no attempt after the last")


def drop_empty(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without the values that say nothing."""
    return {name: value for name, value in mapping.items() if value not in ("", None)}


def read_content(answer: httpx.Response, what: str, url: str) -> dict[str, Any]:
    """Return the content of an answer.

    Raises:
        Refused: it is not the API's.
    """
    try:
        content = answer.json() if answer.content else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        message = f"{what}: the answer is no JSON; is {url} the API, or does a login stand before it?"
        raise Refused(message, answer.status_code, "host")
    return content


def explain_refusal(what: str, answer: httpx.Response) -> KubeflowError:
    """Return the error for an answer other than success: `Refused` if it would come again."""
    status = answer.status_code
    try:
        body = answer.json()
        words = " ".join(str(body.get("error_message") or body.get("message") or body.get("error") or "").split())
    except (ValueError, AttributeError):
        words = ""
    hint = HINTS.get(status, "a redirect: a login stands before it" if answer.is_redirect else "")
    if status == httpx.codes.BAD_REQUEST and UPLOAD_REFUSED.fullmatch(words):
        hint = (
            "the token's account may not upload pipelines; bind its role to it (docs/how-to/install-on-kubernetes.md)"
        )
    permanent = next((hint for sign, hint in PERMANENT.items() if status == 500 and sign in words), "")
    # The cause stands at the end of Kubeflow's messages.
    words = words if len(words) <= 600 else f"{words[:300]} … {words[-300:]}"
    reason = ": ".join(filter(None, [permanent or hint, words])) or answer.reason_phrase
    message = f"{what}: HTTP {status}, {reason}"
    if status in TRANSIENT and not permanent:
        return Unreachable(message)
    return Unreachable(message) if status > 500 else Refused(message, status, ABOUT.get(status, ""))


def explain_silence(what: str, error: httpx.HTTPError, url: str) -> KubeflowError:
    """Return the error for a request that got no answer."""
    causes = list(_causes(error))
    words = " ".join(str(causes[-1] if str(causes[-1]) else error).split())[:200]
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Refused(f"{url}: its certificate is not trusted ({words})", about="ca")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Absent(f"{url}: there is no such host", "host")
    if isinstance(error, httpx.ConnectError):
        return Absent(f"{url}: nothing answers there ({words})", "host")
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{what}: no answer in time")
    return Unreachable(f"{what}: the connection broke ({words})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
