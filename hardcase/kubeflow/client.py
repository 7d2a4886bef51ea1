"""Run the rules over httpx: `Client` waits, `AsyncClient` does not, `Rehearsal` contacts no server."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import httpx

from hardcase.kubeflow.address import Address, Gone, KubeflowError, Refused, Unreachable
from hardcase.kubeflow.requests import Answer, Flow, Request, Result, ask, drop_empty
from hardcase.kubeflow.runs import ENDED

MISSES: Final = 3


@dataclass(frozen=True)
class Look:
    """A run as it was just now."""

    run: dict[str, Any]


@dataclass(frozen=True)
class Missed:
    """A look that got no usable answer.

    Attributes:
        error: why.
        silent: seconds since the last usable answer.
    """

    error: KubeflowError
    silent: float


Event: TypeAlias = Look | Missed


class _Watch:
    """The rule by which a run is watched until it ends.

    Args:
        run_id: of the run.
        patience: seconds that Kubeflow may be silent.
        unattended: no user is there to fix anything. A refusal is waited out too, since a token may be in the middle
            of its rotation, and the run counts as gone at the third 404, since one may be a proxy's.
    """

    def __init__(self, run_id: str, patience: float, unattended: bool) -> None:
        self.run_id, self.patience, self.unattended = run_id, patience, unattended
        self.heard, self.seen, self.missed = time.monotonic(), False, 0

    def answer(self, outcome: dict[str, Any] | KubeflowError) -> Event:
        """Return what a look showed.

        Raises:
            Gone: somebody deleted the run.
            Refused: Kubeflow has no such run, or does not show it.
            Unreachable: Kubeflow was silent for too long, or never answered.
        """
        if isinstance(outcome, dict):
            self.heard, self.seen, self.missed = time.monotonic(), True, 0
            return Look(outcome)
        silent = time.monotonic() - self.heard
        if isinstance(outcome, Refused):
            self.missed += outcome.status == 404
            if self.missed >= (MISSES if self.unattended else 1):
                if self.seen or self.unattended:
                    message = f"run {self.run_id} is gone from Kubeflow: someone deleted it ({outcome})"
                    raise Gone(message, 404) from outcome
                raise Refused(f"run {self.run_id}: Kubeflow has no such run", 404) from outcome
            if not self.unattended:
                raise outcome
        if silent > self.patience or not (self.seen or self.unattended):
            raise outcome if isinstance(outcome, Unreachable) else Unreachable(str(outcome)) from outcome
        return Missed(outcome, silent)


class Client:
    """Kubeflow, waited for.

    Args:
        address: of the API.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http: httpx.Client | None = None

    def run(self, flow: Flow[Result]) -> Result:
        """Run a rule to its end, and return its result."""
        answer: Answer | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as done:
                result: Result = done.value
                return result
            answer = None
            if isinstance(step, Request):
                answer = self.send(step)
            else:
                time.sleep(step)

    def send(self, request: Request) -> Answer:
        """Send a request once; return its answer, or the error in the place of one."""
        try:
            if self.address.before:
                self.address.before()
            if self._http is None:
                self._http = httpx.Client(**self.address.client_options())
            return self._http.request(**request.options(self.address))
        except (httpx.HTTPError, KubeflowError) as error:
            return error

    def ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        return self.run(ask(Request(method, path, **more), self.address))

    def watch(self, run_id: str, poll: float = 5, patience: float = 600) -> Iterator[Event]:
        """Yield what is seen of a run until it ends."""
        watch = _Watch(run_id, patience, unattended=False)
        while True:
            try:
                outcome: dict[str, Any] | KubeflowError = self.ask("GET", f"runs/{run_id}")
            except KubeflowError as error:
                outcome = error
            event = watch.answer(outcome)
            yield event
            if isinstance(event, Look) and event.run.get("state") in ENDED:
                return
            time.sleep(poll)


class AsyncClient:
    """Kubeflow, without holding a thread; used as a context.

    Attributes:
        address: of the API; may be replaced by one with another token.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http = httpx.AsyncClient(**address.client_options())

    async def __aenter__(self) -> "AsyncClient":
        """Open it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def run(self, flow: Flow[Result]) -> Result:
        """Run a rule to its end, and return its result."""
        answer: Answer | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as done:
                result: Result = done.value
                return result
            answer = None
            if isinstance(step, Request):
                try:
                    answer = await self._http.request(**step.options(self.address))
                except (httpx.HTTPError, KubeflowError) as error:
                    answer = error
            else:
                await asyncio.sleep(step)

    async def watch(self, run_id: str, poll: float, patience: float) -> AsyncIterator[Event]:
        """Yield what is seen of a run until it ends, unattended."""
        watch = _Watch(run_id, patience, unattended=True)
        while True:
            try:
                outcome: dict[str, Any] | KubeflowError = await self.run(
                    ask(Request("GET", f"runs/{run_id}"), self.address)
                )
            except KubeflowError as error:
                outcome = error
            event = watch.answer(outcome)
            yield event
            if isinstance(event, Look) and event.run.get("state") in ENDED:
                return
            await asyncio.sleep(poll)


class Rehearsal(Client):
    """Sends nothing: keeps what it would send, and answers as a Kubeflow that has none of it yet.

    Attributes:
        sent: `method`, `path`, `query` and `body` of each request.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.sent: list[dict[str, Any]] = []

    def send(self, request: Request) -> Answer:
        """Keep a request, and answer it."""
        query = {name: unquote(value) if name == "filter" else value for name, value in request.query.items()}
        body: Any = request.body and drop_empty(request.body)
        for name, (file, content, kind) in (request.files or {}).items():
            body = {name: {"file": file, "type": kind, "bytes": len(content)}}
        sent = {"method": request.method, "path": f"/{request.path}", "query": drop_empty(query), "body": body}
        self.sent.append(sent)
        names = ("pipeline", "pipeline_version", "experiment", "run", "recurring_run")
        created = {f"{name}_id": f"<id of the {name.replace('_', ' ')}>" for name in names}
        return httpx.Response(200, json={} if request.method == "GET" else {**created, "state": "PENDING"})
