"""Records of steps: what each step of a run on a cluster says of itself, in the store.

Kubeflow's own account of a run freezes once its workflow has grown, and holds neither the reason of a failure nor what
a step made. A step writes a record when it begins and another when it ends, under
`notes/<run>/<step>.<number>.json`; each is written once and the last number counts. A step that was served from the
cache writes none: it is found by following the attestations of those that ran
(`hardcase.provenance.attestations.follow`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Final, Literal

from hardcase.errors import HardcaseError
from hardcase.store.digest import canonical_json
from hardcase.store.store import Store

RECORDS: Final = "notes"
RUNS: Final = "runs"
# Why a step whose last record says that it runs is not running any more.
KILLED: Final = "its pod was killed: out of memory, out of time, or lost with its node"
State = Literal["running", "succeeded", "failed", "refused"]


@dataclass(frozen=True)
class StepRecord:
    """What a step says of one attempt.

    Attributes:
        step: its name.
        state: `refused` means that the input or the configuration is at fault; no other attempt can succeed.
        message: why it failed.
        log: last lines of its log, if it failed.
        started: UTC, ISO 8601.
        ended: the same; empty while it runs.
        attestation: sha256 of its signed attestation, once it succeeded.
        materials: sha256 of the attestations of what it read.
        left: sha256 of the files that explain a refusal, by name: quarantine, failed expectations.
    """

    step: str
    state: State
    message: str = ""
    log: list[str] = field(default_factory=list)
    started: str = ""
    ended: str = ""
    attestation: str = ""
    materials: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def write_record(store: Store, run: str, record: StepRecord) -> None:
    """Write a step's record after those that it has.

    Raises:
        HardcaseError: the place takes no more.
    """
    data = canonical_json(asdict(record))
    for number in count(1):
        if store.put_named(f"{RECORDS}/{run}/{record.step}.{number}.json", data):
            return


def read_records(store: Store, run: str) -> dict[str, StepRecord]:
    """Return the last record of each step of a run, by step, in the order in which they began.

    Raises:
        HardcaseError: one of them is none.
    """
    last: dict[str, tuple[int, str]] = {}
    for name in store.list_names(f"{RECORDS}/{run}"):
        step, number, _ = name.rpartition("/")[2].rsplit(".", 2)
        last[step] = max(last.get(step, (0, "")), (int(number), name))
    found = [_record(store, name) for _, name in last.values()]
    return {record.step: record for record in sorted(found, key=lambda record: (record.started, record.step))}


def write_run(store: Store, run: str, summary: Mapping[str, Any]) -> None:
    """Write the record of a run after those that it has: one that Kubeflow retried ends more than once.

    Raises:
        HardcaseError: the place takes no more.
    """
    data = json.dumps(summary).encode()  # not canonical: the order of its steps is theirs
    for number in count(1):
        if store.put_named(f"{RUNS}/{run}{f'.{number}' if number > 1 else ''}.json", data):
            return


def read_run(store: Store, run: str) -> dict[str, Any] | None:
    """Return the last record of a run, or None where there is none yet.

    Raises:
        HardcaseError: it is none.
    """
    names = [name for name in store.list_names(RUNS) if _run_of(name)[0] == run]
    return run_record(store, max(names, key=_run_of)) if names else None


def _run_of(name: str) -> tuple[str, int]:
    """The run and the number of a record, by its name."""
    run, _, number = name.rpartition("/")[2].removesuffix(".json").partition(".")
    return run, int(number or 1)


def stored_runs(store: Store) -> list[dict[str, Any]]:
    """Return the records of all runs in a store, wherever they ran, the newest first.

    A run that has no record yet is `running`, with the states of the steps that began.

    Raises:
        HardcaseError: a record is none.
    """
    last = {_run_of(name)[0]: name for name in sorted(store.list_names(RUNS), key=_run_of)}
    found = {run: run_record(store, name) for run, name in last.items()}
    for run in {name.split("/")[1] for name in store.list_names(RECORDS)} - set(found):
        steps = read_records(store, run)
        began = min((record.started for record in steps.values()), default="")
        states = {step: {"status": record.state} for step, record in steps.items()}
        found[run] = {"status": "running", "started": began, "steps": states}
    listed = [{"run_id": run, **content} for run, content in found.items()]
    return sorted(listed, key=lambda run: (run.get("started") or "", run["run_id"]), reverse=True)


def run_record(store: Store, name: str) -> dict[str, Any]:
    """Return the record of a run, by its name in the store.

    Raises:
        HardcaseError: it is none.
    """
    try:
        content = json.loads(store.get_named(name) or b"")
        return {"snapshot": content["snapshot"], **content}
    except (ValueError, KeyError, TypeError) as error:
        raise HardcaseError(f"{name}: not the record of a run; mend or remove it") from error


def _record(store: Store, name: str) -> StepRecord:
    try:
        content: dict[str, Any] = json.loads(store.get_named(name) or b"")
        return StepRecord(**content)
    except (ValueError, TypeError) as error:
        raise HardcaseError(f"{name}: not the record of a step; remove it") from error
