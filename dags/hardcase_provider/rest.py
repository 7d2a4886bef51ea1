"""Send one request to Kubeflow Pipelines' v2beta1 REST API, and decide what its answer means.

The rules use no socket, so the hook (blocking) and the trigger (async) share them. A POST whose answer was lost may
have been carried out. It is not repeated here: the hook first looks whether it was.
"""

import asyncio
import os
import random
import re
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
# A refused connection carried out nothing. With a pause of one second these attempts take four minutes, which is
# longer than a restart of the API server.
CONNECTION_ATTEMPTS: Final = 10
LONGEST_WAIT: Final = 60.0
PROJECTED_TOKEN: Final = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105  a path
TRANSIENT: Final = frozenset({429, 500, 502, 503, 504})
NOT_DONE: Final = frozenset({429, 503})
# KFP 2.17 answers 500 to these too, and does so again: tests/recordings/kubeflow/run-create-version-missing.json and
# run-create-parameter-large.json.
PERMANENT: Final = re.compile("ResourceNotFoundError|request is too large")
# A missing right to upload is a 400 with these words and no reason: version-upload-forbidden.json.
UPLOAD_REFUSED: Final = re.compile("Failed to create a pipeline( version)?")
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
    """Kubeflow answered no, and will answer no again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(KubeflowError):
    """Kubeflow gave no usable answer; what was asked may have been done."""


@dataclass(frozen=True)
class Address:
    """Where Kubeflow is and how it is spoken to.

    Attributes:
        url: of the API, without `/apis`.
        token: bearer token; wins over the file.
        token_file: read at each request, because it is rotated.
        namespace: of the user, where there are several.
        experiment: name of the experiment that runs belong to.
        ui: where a person sees a run.
        ca: file of certificates to trust.
        timeout: of one request, in seconds.
        pause: before the second attempt, in seconds; doubled for each attempt after.
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
        """Return the header that says who asks."""
        token, path = self.token, Path(self.token_file or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", PROJECTED_TOKEN))
        if not token and path.is_file():
            token = path.read_text(encoding="utf-8").strip()
        elif not token and self.token_file:
            raise Refused(f"{path}: no such token file; mend the connection's `token_file`", 401)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def client_options(self) -> dict[str, Any]:
        """Return options of an httpx client. Redirects are not followed, because they lead to a login page."""
        return {"base_url": self.url, "timeout": self.timeout, "verify": _trusting(self.ca)}

    def run_link(self, run_id: str) -> str:
        """Return the UI URL of a run."""
        return f"{(self.ui or self.url).rstrip('/')}/#/runs/details/{run_id}"


def url_of(connection: Any) -> str:
    """Return scheme, host and port of a connection; the scheme is `https` if none is named."""
    host = connection.host.rstrip("/")
    base = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    return base + (f":{connection.port}" if connection.port else "")


@cache
def _trusting(ca: str) -> ssl.SSLContext:
    """Read the certificates once: these are all of the system's."""
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
        """Return options of an httpx request."""
        return {
            "method": self.method,
            "url": f"/apis/v2beta1/{self.path}",
            "params": {name: value for name, value in self.query.items() if value not in ("", None)},
            "json": self.body,
            "files": self.files,
            "headers": address.headers(),
        }

    def judge(self, answer: httpx.Response | httpx.HTTPError, attempt: int, pause: float) -> dict[str, Any] | float:
        """Return the content of the answer to that attempt (from 0), or the seconds to wait for the next attempt.

        Raises:
            Refused: another attempt would get the same answer.
            Unreachable: it was tried often enough, or it may have been done.
        """
        what, attempts = f"Kubeflow, {self.method} {self.path}", ATTEMPTS
        if isinstance(answer, httpx.HTTPError):
            kind = "no answer in time" if isinstance(answer, httpx.TimeoutException) else "no connection"
            problem = f"{what}: {kind} ({type(answer).__name__}: {answer})"
            not_done = isinstance(answer, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            attempts = CONNECTION_ATTEMPTS if not_done else ATTEMPTS
        else:
            if answer.is_success:
                return _content(answer, what)
            reason = _reason(answer)
            problem = f"{what}: HTTP {answer.status_code}, {reason}"
            if answer.status_code not in TRANSIENT or PERMANENT.search(answer.text):
                raise Refused(problem, answer.status_code)
            not_done = answer.status_code in NOT_DONE
        if attempt + 1 >= attempts or not (self.repeatable or not_done):
            raise Unreachable(f"{problem}; tried {attempt + 1} times")
        asked = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
        wait = float(asked) if asked.isdecimal() else pause * 2**attempt * random.uniform(0.75, 1.25)
        return min(wait, LONGEST_WAIT)


def _content(answer: httpx.Response, what: str) -> dict[str, Any]:
    try:
        content = answer.json() if answer.content else {}
    except ValueError as error:
        message = f"{what}: the answer is no JSON; is the connection's host the API?"
        raise Refused(message, answer.status_code) from error
    return content if isinstance(content, dict) else {}


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        words = " ".join(str(body.get("error_message") or body.get("message") or body.get("error") or "").split())
    except (ValueError, AttributeError):
        words = ""
    hint = HINTS.get(answer.status_code, "a redirect: a login stands before it" if answer.is_redirect else "")
    if answer.status_code == httpx.codes.BAD_REQUEST and UPLOAD_REFUSED.fullmatch(words):
        hint = "the token's account may not upload pipelines (or the file is no pipeline): see its role"
    # Kubeflow's chain of messages ends with the cause, so it is cut late.
    return ": ".join(filter(None, [hint, words[:600]])) or answer.reason_phrase


def ask(address: Address, request: Request) -> dict[str, Any]:
    """Send a request, wait, and return its answer."""
    with httpx.Client(**address.client_options()) as client:
        for attempt in range(CONNECTION_ATTEMPTS):
            try:
                answer: httpx.Response | httpx.HTTPError = client.request(**request.options(address))
            except httpx.HTTPError as error:
                answer = error
            outcome = request.judge(answer, attempt, address.pause)
            if isinstance(outcome, dict):
                return outcome
            time.sleep(outcome)
    raise AssertionError("judge allows no attempt after the last")


async def ask_async(client: httpx.AsyncClient, address: Address, request: Request) -> dict[str, Any]:
    """Do the same without holding a thread."""
    for attempt in range(CONNECTION_ATTEMPTS):
        try:
            answer: httpx.Response | httpx.HTTPError = await client.request(**request.options(address))
        except httpx.HTTPError as error:
            answer = error
        outcome = request.judge(answer, attempt, address.pause)
        if isinstance(outcome, dict):
            return outcome
        await asyncio.sleep(outcome)
    raise AssertionError("judge allows no attempt after the last")
