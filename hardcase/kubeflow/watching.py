"""Watch a run until it ends."""

import time
from collections.abc import Mapping
from typing import Any, Final

from hardcase.kubeflow.address import Address, Gone, KubeflowError, Refused, Unreachable
from hardcase.kubeflow.requests import Flow, Look, Missed, Request, ask
from hardcase.kubeflow.runs import ENDED

MISSES: Final = 3


def watch(
    run_id: str, address: Address, poll: float = 5, patience: float = 600, unattended: bool = False
) -> Flow[Mapping[str, Any]]:
    """Return a run once it has ended; yield what each look showed.

    Args:
        unattended: no user is there to fix anything. A refusal is waited out too, since a token may be in the middle
            of its rotation.

    A run that was seen counts as gone at the third 404, since one may be a proxy's.

    Raises:
        Gone: somebody deleted the run.
        Refused: Kubeflow has no such run, or does not show it.
        Unreachable: Kubeflow was silent for too long, or never answered.
    """
    heard, seen, missed = time.monotonic(), unattended, 0
    while True:
        try:
            run = yield from ask(Request("GET", f"runs/{run_id}"), address)
        except KubeflowError as error:
            silent, absent = time.monotonic() - heard, getattr(error, "status", 0) == 404
            missed += absent
            if absent and not seen:
                raise Refused(f"run {run_id}: Kubeflow has no such run", 404) from error
            if missed >= MISSES:
                raise Gone(f"run {run_id} is gone from Kubeflow: someone deleted it ({error})", 404) from error
            if not seen or (isinstance(error, Refused) and not absent and not unattended):
                raise
            if silent > patience:
                raise Unreachable(str(error), error.about) from error
            yield Missed(error, silent)
        else:
            heard, seen, missed = time.monotonic(), True, 0
            yield Look(run)
            if run.get("state") in ENDED:
                return run
        yield poll
