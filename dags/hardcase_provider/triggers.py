"""Wait for a Kubeflow run in the triggerer, holding no worker.

Nothing is remembered between polls but what `serialize` returns, so a trigger created elsewhere continues where the
first one was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from hardcase.kubeflow.address import Address, Gone, KubeflowError, Refused
from hardcase.kubeflow.client import AsyncClient
from hardcase.kubeflow.launching import terminate
from hardcase.kubeflow.requests import Look, Missed
from hardcase.kubeflow.runs import ENDED, Step, describe_progress, summarise_run
from hardcase.kubeflow.watching import watch
from hardcase_provider.hooks import explain, read_address
from hardcase_provider.step_records import look_at_steps

TOKEN_ATTEMPTS: Final = 7  # with a pause of one second, a minute
# The event loop holds its tasks by weak references only.
STOPPING: Final[set["asyncio.Task[None]"]] = set()


class KubeflowRunTrigger(BaseTrigger):
    """Fires when a run has ended, is gone, or has taken too long."""

    def __init__(
        self,
        connection_id: str,
        run_id: str,
        poll: float,
        end_by: float,
        patience: float,
        steps: Mapping[str, bool] | None = None,
    ) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.run_id = run_id
        self.poll = poll
        self.end_by = end_by
        self.patience = patience
        self.steps = dict(steps or {})

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how to create the trigger again."""
        names = ("connection_id", "run_id", "poll", "end_by", "patience", "steps")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def _address(self) -> Address:
        return read_address(await BaseHook.aget_connection(self.connection_id))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire."""
        try:
            async with AsyncClient(await self._address()) as client, asyncio.timeout(self.end_by - time.time()):
                event = {"status": "ended", "run": await self._wait(client)}
        except TimeoutError:
            event = {"status": "late"}
        except Gone as error:
            event = {"status": "vanished", "message": str(error)}
        except KubeflowError as error:
            event = {"status": "lost", "message": explain(error)}
        yield TriggerEvent(event)

    async def _wait(self, client: AsyncClient) -> dict[str, Any]:
        """Look, log what is new, wait, look again; return a summary of the run when it has ended."""
        logged, steps, address = "", list[Step](), client.address

        async def see(event: Look | Missed) -> None:
            nonlocal logged, steps
            if isinstance(event, Missed):
                self.log.warning("%s", explain(event.error))
                if isinstance(event.error, Refused) and event.error.status == 401:
                    client.address = await self._address()  # with the new password, if there is one
                return
            steps = await asyncio.to_thread(look_at_steps, event.run, self.steps)
            progress = describe_progress(event.run, steps, address.namespace, time.time())
            if progress != logged and event.run.get("state") not in ENDED:
                self.log.info("run %s: %s", self.run_id, progress)
                logged = progress

        run = await client.run(watch(self.run_id, address, self.poll, self.patience, unattended=True), see)
        return summarise_run(run, steps, link=address.link(self.run_id), namespace=address.namespace)

    async def on_kill(self) -> None:
        """Stop the run: a user cleared or marked the task. A restart of the triggerer does not come here.

        The triggerer cancels this coroutine again at each of its syncs, a second apart (Airflow 3.3.2,
        jobs/triggerer_job_runner.py, `cancel_triggers`). So the stop is a task of its own and continues.
        """
        stopping = asyncio.create_task(self._stop())
        STOPPING.add(stopping)
        stopping.add_done_callback(STOPPING.discard)
        await asyncio.shield(stopping)

    async def _stop(self) -> None:
        link = ""
        try:
            address = await self._address()
            link = address.link(self.run_id)
            self.log.info("stopping run %s", self.run_id)
            active = await self._terminate(address)
            self.log.info("run %s %s", self.run_id, "is being stopped" if active else "has ended already")
        except Exception as error:  # of any kind: no worker waits for this task
            self.log.error("run %s is still active; terminate it in Kubeflow: %s (%s)", self.run_id, link, error)

    async def _terminate(self, address: Address) -> bool:
        """Terminate the run, and return whether it was active; the token may be in the middle of its rotation."""
        for attempt in range(TOKEN_ATTEMPTS):
            try:
                async with AsyncClient(address) as client:
                    return await client.run(terminate(self.run_id, address))
            except Refused as error:
                if error.status != 401 or attempt + 1 == TOKEN_ATTEMPTS:
                    raise
                self.log.warning("%s", explain(error))
                await asyncio.sleep(address.pause * 2**attempt)
                address = await self._address()
        raise AssertionError("the last attempt returns or raises")
