"""Wait for a Kubeflow run in the triggerer, holding no worker.

Nothing is remembered between polls but what `serialize` says, so a trigger made anew elsewhere goes on where it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from hardcase_provider.hooks import ENDED, address_of, digested
from hardcase_provider.rest import Address, Refused, Request, Unreachable, ask_async


class KubeflowRunTrigger(BaseTrigger):
    """Fires when a run has ended, is gone, or has taken too long.

    Args:
        connection_id: of type `kubeflow`.
        run_id: Kubeflow's.
        poll: seconds between looks.
        end_by: Unix time after which it is not waited for.
        patience: seconds without a usable answer after which Kubeflow counts as gone.
    """

    def __init__(self, connection_id: str, run_id: str, poll: float, end_by: float, patience: float) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.run_id = run_id
        self.poll = poll
        self.end_by = end_by
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How to make it anew."""
        names = ("connection_id", "run_id", "poll", "end_by", "patience")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def _address(self) -> Address:
        return address_of(await BaseHook.aget_connection(self.connection_id))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, wait, look again."""
        address = await self._address()
        heard, missed = time.monotonic(), 0
        async with httpx.AsyncClient(**address.client_options()) as client:
            while True:
                try:
                    run = await ask_async(client, address, Request("GET", f"runs/{self.run_id}"))
                    heard, missed = time.monotonic(), 0
                    if run.get("state") in ENDED:
                        yield TriggerEvent({"status": "ended", "run": digested(run, address)})
                        return
                    self.log.info("run %s: %s", self.run_id, run.get("state"))
                except (Refused, Unreachable) as error:
                    self.log.warning("%s", error)
                    if isinstance(error, Refused) and error.status == 401:
                        address = await self._address()  # with the new password, if there is one
                    # One 404 may be a proxy's; a token may be in the middle of its rotation.
                    missed += isinstance(error, Refused) and error.status == 404
                    if missed >= 3:
                        yield TriggerEvent({"status": "vanished", "message": str(error)})
                        return
                    if time.monotonic() - heard > self.patience:
                        yield TriggerEvent({"status": "lost", "message": str(error)})
                        return
                if time.time() > self.end_by:
                    yield TriggerEvent({"status": "late"})
                    return
                await asyncio.sleep(self.poll)

    async def on_kill(self) -> None:
        """The task was cleared or marked by a user: stop the run. A restart of the triggerer does not come here."""
        address = await self._address()
        self.log.info("stopping run %s", self.run_id)
        async with httpx.AsyncClient(**address.client_options()) as client:
            await ask_async(client, address, Request("POST", f"runs/{self.run_id}:terminate"))
