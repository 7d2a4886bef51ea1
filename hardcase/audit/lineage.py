"""OpenLineage events of a run: which step began, ended or failed, what it read and what it made.

Where they go is the client library's own configuration (`OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG`,
`OPENLINEAGE__TRANSPORT__…`); without any, the launcher sets a file in the run's folder. They tell and prove nothing:
what a model was made of stands in the signed records. So an event that cannot be sent is no error.
"""

import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

NAMESPACE: Final = "hardcase"
PIPELINE: Final = "retraining"
PRODUCER: Final = "urn:hardcase:pipeline:v1"
IDS: Final = uuid.UUID("b1a5c1ce-31f1-5f7e-8c39-6f6e3b0f8f52")
CONFIGURED: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE", "OPENLINEAGE_DISABLED")
State = Literal["START", "COMPLETE", "FAIL"]
logger = logging.getLogger(__name__)


def default_environment(folder: Path) -> dict[str, str]:
    """What sends events to `lineage.jsonl` in that folder, unless the user has said where they go."""
    if any(os.environ.get(name) for name in CONFIGURED):
        return {}
    return {
        "OPENLINEAGE__TRANSPORT__TYPE": "file",
        "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(folder / "lineage.jsonl"),
        "OPENLINEAGE__TRANSPORT__APPEND": "true",
    }


def emit(
    state: State,
    run: str,
    step: str | None = None,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    error: str = "",
) -> None:
    """Tell of a step of a run, or of the run as a whole.

    Args:
        state: what happened to it.
        run: its id.
        step: None for the whole.
        inputs: sha256 of what was read, by name.
        outputs: of what was made.
        error: what it failed of.
    """
    if not run or not any(os.environ.get(name) for name in CONFIGURED):
        return
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

    facets = _run_facets(run, step, error)
    event = RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=PRODUCER,
        eventType=RunState[state],
        run=Run(runId=run_id(run, step), facets=facets),
        job=Job(namespace=NAMESPACE, name=_job(step)),
        inputs=[_dataset(name, digest, output=False) for name, digest in (inputs or {}).items()],
        outputs=[_dataset(name, digest, output=True) for name, digest in (outputs or {}).items()],
    )
    for client in _clients():
        try:
            client.emit(event)
        except Exception as failure:  # of any transport, after several tries
            _clients().clear()  # or a server that is down would cost every step its patience twice
            reason = " ".join(str(failure).split())[:200]
            logger.warning(
                "OpenLineage: %s of %s was not sent, nor will be what follows: %s", state, _job(step), reason
            )
            return


def run_id(run: str, step: str | None) -> str:
    """The UUID of a run or of its step: whoever knows both can tell of it."""
    return str(uuid.uuid5(IDS, f"{run}/{step or ''}"))


def _job(step: str | None) -> str:
    return f"{PIPELINE}.{step}" if step else PIPELINE


def _run_facets(run: str, step: str | None, error: str) -> dict[str, Any]:
    from openlineage.client.generated import error_message_run, parent_run

    facets: dict[str, Any] = {}
    if step:
        whole = run_id(run, None)
        facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=whole),
            job=parent_run.Job(namespace=NAMESPACE, name=PIPELINE),
            root=parent_run.Root(
                run=parent_run.RootRun(runId=whole), job=parent_run.RootJob(namespace=NAMESPACE, name=PIPELINE)
            ),
        )
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="python")
    return facets


def _dataset(name: str, digest: str, *, output: bool) -> Any:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet

    facets = {}
    if digest:
        facets = {
            "version": DatasetVersionDatasetFacet(datasetVersion=digest),
            "hardcase_digest": _digest_facet(digest),
        }
    return (OutputDataset if output else InputDataset)(namespace=NAMESPACE, name=name, facets=facets)


def _digest_facet(digest: str) -> Any:
    import attr
    from openlineage.client.generated.base import DatasetFacet

    @attr.define
    class DigestDatasetFacet(DatasetFacet):
        algorithm: str
        value: str

        @staticmethod
        def _get_schema() -> str:
            return "urn:hardcase:digest-dataset-facet:v1"

    return DigestDatasetFacet(algorithm="sha256", value=digest)


@cache
def _clients() -> list["OpenLineageClient"]:
    from openlineage.client import OpenLineageClient
    from openlineage.client.facet_v2 import set_producer

    set_producer(PRODUCER)
    return [OpenLineageClient()]
