"""One request to Kubeflow Pipelines' v2beta1 REST API: what is tried again, after how long, and what an answer means.

The rules know no socket, so that the hook (blocking) and the trigger (async) share them. What may have been carried out
(a POST whose answer was lost) is not repeated here: the hook looks first whether it was.
"""

import asyncio
import os
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx
from airflow.sdk.exceptions import AirflowException

ATTEMPTS: Final = 5
LONGEST_WAIT: Final = 60.0
PROJECTED_TOKEN: Final = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105  a path
PASSING: Final = frozenset({429, 500, 502, 503, 504})
NOT_DONE: Final = frozenset({429, 503})
HINTS: Final = {
    400: "the request is at fault",
    401: "the token is missing, wrong or expired: see the connection's password or token file",
    403: "the token's account may not do this: see its role in the namespace",
    404: "there is no such thing there",
    409: "it is there already",
}


class KubeflowError(AirflowException):
    """Kubeflow did not do what was asked; the message says what and why."""


class Refused(KubeflowError):
    """It answered no, and will again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(KubeflowError):
    """It gave no answer, or only that it cannot now; what was asked may have been done."""


@dataclass(frozen=True)
class Address:
    """Where Kubeflow is and how it is spoken to.

    Attributes:
        url: of the API, without `/apis`.
        token: bearer token; wins over the file.
        token_file: read at each request, for it is rotated.
        namespace: of the user, where there are several.
        experiment: name of the one that runs belong to.
        ui: where a person sees a run.
        ca: file of certificates to trust.
        timeout: of one request, in seconds.
        pause: before the second attempt, in seconds; doubled for each one after.
    """

    url: str
    token: str = field(default="", repr=False)
    token_file: str = ""
    namespace: str = ""
    experiment: str = ""
    ui: str = ""
    ca: str = ""
    timeout: float = 30
    pause: float = 1

    def headers(self) -> dict[str, str]:
        """Who asks."""
        token, path = self.token, Path(self.token_file or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", PROJECTED_TOKEN))
        if not token and path.is_file():
            token = path.read_text(encoding="utf-8").strip()
        elif not token and self.token_file:
            raise Refused(f"{path}: no such token file; mend the connection's `token_file`", 401)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def client_options(self) -> dict[str, Any]:
        """For httpx; redirects are not followed, for they lead to a login page."""
        return {"base_url": self.url, "timeout": self.timeout, "verify": _trusting(self.ca)}

    def run_link(self, run_id: str) -> str:
        """Of a run, in the UI."""
        return f"{(self.ui or self.url).rstrip('/')}/#/runs/details/{run_id}"


def url_of(connection: Any) -> str:
    """Scheme, host and port of a connection; `https` if nothing is said."""
    host = connection.host.rstrip("/")
    base = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    return base + (f":{connection.port}" if connection.port else "")


@cache
def _trusting(ca: str) -> ssl.SSLContext:
    """Made once: it reads all certificates of the system."""
    return ssl.create_default_context(cafile=ca or None)


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        method: of HTTP.
        path: below `/apis/v2beta1/`.
        query: without what is empty.
        body: sent as JSON.
        files: sent as a form.
        repeatable: doing it twice is doing it once.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    files: Any = None
    repeatable: bool = True

    def options(self, address: Address) -> dict[str, Any]:
        """For httpx."""
        return {
            "method": self.method,
            "url": f"/apis/v2beta1/{self.path}",
            "params": {name: value for name, value in self.query.items() if value not in ("", None)},
            "json": self.body,
            "files": self.files,
            "headers": address.headers(),
        }

    def judge(self, answer: httpx.Response | httpx.HTTPError, attempt: int, pause: float) -> dict[str, Any] | float:
        """What the answer to that attempt (from 0) means: its content, or how many seconds to wait for the next.

        Raises:
            Refused: it makes no sense to try again.
            Unreachable: it was tried often enough, or may have been done.
        """
        what = f"Kubeflow, {self.method} {self.path}"
        if isinstance(answer, httpx.HTTPError):
            problem = (
                f"{what}: {'no answer in time' if isinstance(answer, httpx.TimeoutException) else 'no connection'}"
            )
            problem += f" ({type(answer).__name__}: {answer})"
            not_done = isinstance(answer, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        else:
            if answer.is_success:
                return _content(answer, what)
            problem = f"{what}: HTTP {answer.status_code}, {_reason(answer)}"
            if answer.status_code not in PASSING:
                raise Refused(problem, answer.status_code)
            not_done = answer.status_code in NOT_DONE
        if attempt + 1 >= ATTEMPTS or not (self.repeatable or not_done):
            raise Unreachable(f"{problem}; tried {attempt + 1} times")
        asked = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
        wait = float(asked) if asked.isdecimal() else pause * 2**attempt * random.uniform(0.75, 1.25)
        return min(wait, LONGEST_WAIT)


def _content(answer: httpx.Response, what: str) -> dict[str, Any]:
    if not answer.content:
        return {}
    try:
        found = answer.json()
    except ValueError as error:
        raise Refused(
            f"{what}: the answer is no JSON; is the connection's host the API?", answer.status_code
        ) from error
    return found if isinstance(found, dict) else {}


def _reason(answer: httpx.Response) -> str:
    try:
        told = answer.json()
        told = told.get("error_message") or told.get("message") or told.get("error") or ""
    except (ValueError, AttributeError):
        told = ""
    hint = HINTS.get(answer.status_code, "a redirect: a login stands before it" if answer.is_redirect else "")
    return ": ".join(filter(None, [hint, " ".join(str(told).split())[:300]])) or answer.reason_phrase


def ask(address: Address, request: Request) -> dict[str, Any]:
    """Send it and wait."""
    with httpx.Client(**address.client_options()) as client:
        for attempt in range(ATTEMPTS):
            try:
                answer: httpx.Response | httpx.HTTPError = client.request(**request.options(address))
            except httpx.HTTPError as error:
                answer = error
            found = request.judge(answer, attempt, address.pause)
            if isinstance(found, dict):
                return found
            time.sleep(found)
    raise AssertionError("judge lets no attempt after the last")


async def ask_async(client: httpx.AsyncClient, address: Address, request: Request) -> dict[str, Any]:
    """The same without holding a thread."""
    for attempt in range(ATTEMPTS):
        try:
            answer: httpx.Response | httpx.HTTPError = await client.request(**request.options(address))
        except httpx.HTTPError as error:
            answer = error
        found = request.judge(answer, attempt, address.pause)
        if isinstance(found, dict):
            return found
        await asyncio.sleep(found)
    raise AssertionError("judge lets no attempt after the last")
