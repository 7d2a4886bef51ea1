"""OpenLineage events of a run: which step began, ended or failed, what it read and what it wrote.

The client library's own configuration decides where they go (`OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG`,
`OPENLINEAGE__TRANSPORT__…`); without any, the launcher names a file in the run's folder. Events inform and prove
nothing, since the signed records hold the proof. An event that cannot be sent is therefore not an error, and costs at
most `PATIENCE`.
"""

import logging
import os
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from hardcase.errors import HardcaseError

if TYPE_CHECKING:  # importing it takes a third of a second
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import RunEvent

NAMESPACE: Final = "hardcase"
PIPELINE: Final = "retraining"
PRODUCER: Final = "urn:hardcase:pipeline:v1"
IDS: Final = uuid.UUID("b1a5c1ce-31f1-5f7e-8c39-6f6e3b0f8f52")
CONFIGURED: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")  # begins of names
PATIENCE: Final = 5.0  # seconds for an event
RETRIES: Final = 3  # by HTTP; 1.8 s. The library's five take 9 s
SENDER: Final = "openlineage-sender"
State = Literal["START", "COMPLETE", "FAIL"]
logger = logging.getLogger(__name__)
_given_up: set[str] = set()  # runs of which an event was not sent: a dead server must not cost its patience each time


def default_environment(folder: Path) -> dict[str, str]:
    """Return variables that send events to `lineage.jsonl` in a folder; none where the user configured a transport."""
    if _disabled() or _configured():
        return {}
    return {
        "OPENLINEAGE__TRANSPORT__TYPE": "file",
        "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(folder.absolute() / "lineage.jsonl"),
        "OPENLINEAGE__TRANSPORT__APPEND": "true",
    }


def emit(
    state: State,
    run: str,
    step: str | None = None,
    inputs: Mapping[str, str] = MappingProxyType({}),
    outputs: Mapping[str, str] = MappingProxyType({}),
    error: str = "",
) -> None:
    """Send an event of a step or of a whole run; log one warning per run and process if that fails.

    `inputs` and `outputs` hold the sha256 of what was read and written, by name; empty for a source without one.
    """
    if not run or run in _given_up or _disabled() or not _configured():
        return
    try:
        _send(_client(run), _event(state, run, step, inputs, outputs, error))
    except Exception as failure:  # of any transport, or of its configuration
        _given_up.add(run)
        reason = re.sub(r"//[^/@\s]*@", "//", " ".join(str(failure).split()))[:200]  # an URL may hold a password
        logger.warning("OpenLineage: %s of %s was not sent, nor will be what follows: %s", state, _job(step), reason)


def run_id(run: str, step: str | None) -> str:
    """Return OpenLineage's UUID of a run or of its step; it depends on nothing else."""
    return str(uuid.uuid5(IDS, f"{run}/{step or ''}"))


def _job(step: str | None) -> str:
    return f"{PIPELINE}.{step}" if step else PIPELINE


def _disabled() -> bool:
    return os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true"


def _configured() -> bool:
    return any(value and name.startswith(CONFIGURED) for name, value in os.environ.items())


def _event(
    state: State, run: str, step: str | None, inputs: Mapping[str, str], outputs: Mapping[str, str], error: str
) -> "RunEvent":
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.generated import error_message_run, parent_run
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet

    def describe(digest: str) -> dict[str, Any]:
        return {"version": DatasetVersionDatasetFacet(datasetVersion=digest)} if digest else {}

    facets: dict[str, Any] = {}
    if step:
        parent, pipeline = run_id(run, None), dict[str, Any](namespace=NAMESPACE, name=PIPELINE)
        facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(parent),
            job=parent_run.Job(**pipeline),
            root=parent_run.Root(run=parent_run.RootRun(parent), job=parent_run.RootJob(**pipeline)),
        )
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="python")
    return RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=PRODUCER,
        eventType=RunState[state],
        run=Run(runId=run_id(run, step), facets=facets),
        job=Job(namespace=NAMESPACE, name=_job(step)),
        inputs=[InputDataset(NAMESPACE, name, facets=describe(digest)) for name, digest in inputs.items()],
        outputs=[OutputDataset(NAMESPACE, name, facets=describe(digest)) for name, digest in outputs.items()],
    )


@lru_cache(maxsize=1)  # by run: a process may launch several, each with a file of its own
def _client(_run: str) -> "OpenLineageClient":
    """Return the library's client as the environment configures it; it may not print events to the console."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.facet_v2 import set_producer
    from openlineage.client.transport.http import HttpTransport
    from openlineage.client.transport.http_common import DEFAULT_RETRY_CONFIG

    set_producer(PRODUCER)
    client = OpenLineageClient()
    if client.transport.kind == "console" and (client.config.transport or {}).get("type") != "console":
        raise HardcaseError("OPENLINEAGE_… names no transport")
    for transport in getattr(client.transport, "transports", [client.transport]):
        if isinstance(transport, HttpTransport) and transport.config.retry == DEFAULT_RETRY_CONFIG:
            transport.config.retry = {**DEFAULT_RETRY_CONFIG, "total": RETRIES}
    logging.getLogger("urllib3.connectionpool").addFilter(_not_of_sender)
    return client


def _not_of_sender(record: logging.LogRecord) -> bool:
    # urllib3 warns of each retry.
    return record.threadName != SENDER


def _send(client: "OpenLineageClient", event: "RunEvent") -> None:
    """Send an event within `PATIENCE`; no transport limits all that it does."""
    sent: Future[None] = Future()

    def send() -> None:
        try:
            client.emit(event)
            sent.set_result(None)
        except Exception as failure:
            sent.set_exception(failure)

    Thread(target=send, name=SENDER, daemon=True).start()
    try:
        sent.result(PATIENCE)
    except TimeoutError:
        raise TimeoutError(f"no answer in {PATIENCE:g} s") from None
