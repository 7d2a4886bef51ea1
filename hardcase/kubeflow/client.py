"""Run the rules over httpx: `Client` waits, `AsyncClient` does not, `Rehearsal` contacts no server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import httpx

from hardcase.kubeflow.address import Address, KubeflowError
from hardcase.kubeflow.requests import Answer, Flow, Look, Missed, Request, Result, ask, drop_empty


class Client:
    """Kubeflow, waited for."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http: httpx.Client | None = None

    def run(self, flow: Flow[Result], see: Callable[[Look | Missed], None] = lambda _: None) -> Result:
        """Run a rule to its end, and return its result; `see` is called with what it saw of a run."""
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
            elif isinstance(step, Look | Missed):
                see(step)
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

    async def run(self, flow: Flow[Result], see: Callable[[Look | Missed], Awaitable[None]] | None = None) -> Result:
        """Run a rule to its end, and return its result; `see` is called with what it saw of a run."""
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
            elif isinstance(step, Look | Missed):
                if see:
                    await see(step)
            else:
                await asyncio.sleep(step)


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
