"""Records of runs and of their steps in the store: `runs/<run>.json` and `notes/<run>/<step>.<number>.json`.

Kubeflow's own status of a run freezes once its workflow has grown, and holds neither the reason of a failure nor what
a step wrote. A step therefore writes a record when it begins and another when it ends. Each record is written once; the
last number counts. A cached step writes none: the attestations of the steps that ran lead to it
(`hardcase.provenance.attestations.follow`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Final, Literal

from hardcase.data.scores import upgrade_scores
from hardcase.errors import HardcaseError
from hardcase.formats import check_format
from hardcase.registry.ledger import read_verdict
from hardcase.store.digest import canonical_json
from hardcase.store.store import Store

RECORDS: Final = "notes"
RUNS: Final = "runs"
RUN_FORMAT: Final = 2
STEP_FORMAT: Final = 1
# Why a step is not running any more although its last record says `running`.
KILLED: Final = "its process was killed: out of memory, out of time, or lost with its node"
State = Literal["running", "succeeded", "failed", "refused"]


@dataclass
class StepRecord:
    """Record of one attempt of a step. docs/reference/formats.md says its fields.

    `refused` means that the input or the configuration is at fault, so no other attempt can succeed.
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
    cached: bool = False


def write_record(store: Store, run: str, record: StepRecord) -> None:
    """Write a record of a step under its next number."""
    data = canonical_json({"format": STEP_FORMAT, **asdict(record)})
    for number in count(1):
        if store.put_named(f"{RECORDS}/{run}/{record.step}.{number}.json", data):
            return


def read_records(store: Store, run: str) -> dict[str, StepRecord]:
    """Return the last record of each step of a run, by step, in the order in which the steps began."""
    last: dict[str, tuple[int, str]] = {}
    for name in store.list_names(f"{RECORDS}/{run}"):
        step, number, _ = name.rpartition("/")[2].rsplit(".", 2)
        last[step] = max(last.get(step, (0, "")), (int(number), name))
    records = [_read_step(store, name) for _, name in last.values()]
    return {record.step: record for record in sorted(records, key=lambda record: (record.started, record.step))}


def write_run(store: Store, run: str, summary: Mapping[str, Any]) -> None:
    """Write a record of a run under its next number; a run that Kubeflow retried ends more than once."""
    data = json.dumps(summary).encode()  # not canonical, which would sort the steps
    for number in count(1):
        if store.put_named(f"{RUNS}/{run}{f'.{number}' if number > 1 else ''}.json", data):
            return


def read_run(store: Store, run: str) -> dict[str, Any] | None:
    """Return the last record of a run, or None where there is none yet."""
    names = [name for name in store.list_names(RUNS) if _run_of(name)[0] == run]
    return read_run_record(store, max(names, key=_run_of)) if names else None


def _run_of(name: str) -> tuple[str, int]:
    """Return the run and the number in the name of a record."""
    run, _, number = name.rpartition("/")[2].removesuffix(".json").partition(".")
    return run, int(number or 1)


def list_runs(store: Store) -> list[dict[str, Any]]:
    """Return the records of all runs in a store, wherever they ran, the newest first.

    A run that has no record yet is `running`, with the states of the steps that began.

    Raises:
        HardcaseError: an object is not the record of a run or step.
        NewerFormatError: a newer hardcase wrote it.
    """
    last = {_run_of(name)[0]: name for name in sorted(store.list_names(RUNS), key=_run_of)}
    records = {run: read_run_record(store, name) for run, name in last.items()}
    for run in {name.split("/")[1] for name in store.list_names(RECORDS)} - set(records):
        steps = read_records(store, run)
        began = min((record.started for record in steps.values()), default="")
        states = {step: {"status": record.state} for step, record in steps.items()}
        records[run] = {"status": "running", "started": began, "steps": states}
    runs = [{"run_id": run, **content} for run, content in records.items()]
    return sorted(runs, key=lambda run: (run.get("started") or "", run["run_id"]), reverse=True)


def read_run_record(store: Store, name: str) -> dict[str, Any]:
    """Return the record of a run, by its name in the store."""
    try:
        content = json.loads(store.get_named(name) or b"")
        check_format(content.get("format", 1), RUN_FORMAT, name)
        return upgrade_run({"snapshot": content["snapshot"], **content})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HardcaseError(f"{name}: not the record of a run; correct or remove it") from error


def upgrade_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run in today's words: format 1 says `held` for `rejected` and `grpo` for `final`."""
    upgraded = {**record, "status": read_verdict(record["status"])}
    if scores := record.get("scores"):
        upgraded["scores"] = upgrade_scores(scores)
    if gate := record.get("gate"):
        upgraded["gate"] = {**gate, "verdict": read_verdict(gate["verdict"])}
    return upgraded


def _read_step(store: Store, name: str) -> StepRecord:
    try:
        content: dict[str, Any] = json.loads(store.get_named(name) or b"")
        check_format(content.get("format", 1), STEP_FORMAT, name)
        return StepRecord(**{key: value for key, value in content.items() if key in StepRecord.__dataclass_fields__})
    except (ValueError, TypeError, AttributeError) as error:
        raise HardcaseError(f"{name}: not the record of a step; remove it") from error
