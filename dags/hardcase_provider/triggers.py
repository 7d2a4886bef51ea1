"""Wait for a Kubeflow run in the triggerer, holding no worker.

Nothing is remembered between polls but what `serialize` returns, so a trigger made anew elsewhere continues where the
first one was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from hardcase_provider.hooks import OVER, address_of
from hardcase_provider.rest import Address, Refused, Request, Unreachable, ask_async
from hardcase_provider.runs import ENDED, describe_progress, summarise_run
from hardcase_provider.step_records import with_records

# The event loop holds its tasks by weak references only.
STOPPING: Final[set["asyncio.Task[None]"]] = set()


class KubeflowRunTrigger(BaseTrigger):
    """Fires when a run has ended, is gone, or has taken too long.

    Args:
        connection_id: of type `kubeflow`.
        run_id: Kubeflow's.
        poll: seconds between looks.
        end_by: Unix time after which it is not waited for.
        patience: seconds without a usable answer after which Kubeflow counts as gone.
        steps: of the pipeline, in their order.
    """

    def __init__(
        self, connection_id: str, run_id: str, poll: float, end_by: float, patience: float, steps: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.run_id = run_id
        self.poll = poll
        self.end_by = end_by
        self.patience = patience
        self.steps = list(steps)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how to make it anew."""
        names = ("connection_id", "run_id", "poll", "end_by", "patience", "steps")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def _address(self) -> Address:
        return address_of(await BaseHook.aget_connection(self.connection_id))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, log what is new, wait, look again."""
        address = await self._address()
        heard, missed, logged = time.monotonic(), 0, ""
        async with httpx.AsyncClient(**address.client_options()) as client:
            while True:
                try:
                    run = await ask_async(client, address, Request("GET", f"runs/{self.run_id}"))
                    heard, missed = time.monotonic(), 0
                    run = await asyncio.to_thread(with_records, run)
                    if run.get("state") in ENDED:
                        yield TriggerEvent({"status": "ended", "run": summarise_run(run, self.steps, address)})
                        return
                    progress = describe_progress(run, self.steps, address, datetime.now(UTC))
                    if progress != logged:
                        self.log.info("run %s: %s", self.run_id, progress)
                        logged = progress
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
            link = address.run_link(self.run_id)
            self.log.info("stopping run %s", self.run_id)
            async with httpx.AsyncClient(**address.client_options()) as client:
                await ask_async(client, address, Request("POST", f"runs/{self.run_id}:terminate"))
        except Exception as error:  # of any kind: nobody waits for this task
            if isinstance(error, Refused) and error.status in OVER:
                self.log.info("run %s has ended already", self.run_id)
            else:
                self.log.error("run %s is still active; terminate it in Kubeflow: %s (%s)", self.run_id, link, error)
        else:
            self.log.info("run %s is being stopped", self.run_id)
