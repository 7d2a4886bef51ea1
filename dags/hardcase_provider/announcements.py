"""Which announcements of data a retraining takes, and which were trained on.

An announcement is an event of the Asset `new_data`. What was trained on is kept as the Asset's state (Airflow 3.3.2,
`airflow/models/asset_state_store.py`), which outlives events and runs. The events that start a run do not say it. They
come without an order (`DagRun.consumed_asset_events`), start nothing while the DAG is paused
(`airflow/assets/manager.py:354`), and one that comes while another waits for its run starts none and is not listed
there (:818, :834, and `airflow/jobs/scheduler_job_runner.py:2638`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

from hardcase.text import hide_passwords
from hardcase_provider import forms

TRAINED: Final = "trained"
CHECKED: Final = "checked"
# An API server gives an event its time before it commits it, so one can appear after others that are younger.
OVERLAP: Final = timedelta(hours=1)
SNAPSHOT: Final = "snapshot:"


class Announcement(NamedTuple):
    """An announcement of data.

    Attributes:
        digest: any text that changes with the data; None if the producer names none.
        withdrawn: earlier announcements of the source, if they were not trained on, do not count.
    """

    id: int
    time: str  # ISO 8601, UTC
    source: str
    digest: str | None = None
    withdrawn: bool = False


class Taken(NamedTuple):
    """The announcements that a run takes, as JSON of an XCom and of the Asset's state.

    Attributes:
        until: time of the last of them.
        seen: ids and times of the events up to then that were seen, as far as `OVERLAP` reaches back.
        data: source and digest of each.
    """

    until: str
    seen: dict[str, str]
    data: list[list[str | None]]

    @property
    def since(self) -> str:
        """Return the time from which on an event may be new."""
        return _look_back(self.until)


def read_trained(store: Any) -> Taken | None:
    """Return what was trained on, from the state of the Asset; None before the first training of announced data."""
    state = store.get(TRAINED)
    return Taken(**state) if state else None


def record(store: Any, taken: Taken | None) -> None:
    """Record in the state of the Asset that these were trained on. Doing it again changes nothing."""
    if taken and (trained := advance(read_trained(store), taken)):
        store.set(TRAINED, trained._asdict())


def read_taken(ti: Any) -> Taken | None:
    """Return what the task `plan` of this run took."""
    taken = ti.xcom_pull(task_ids="plan", key="taken")
    return Taken(**taken) if taken else None


def list_announced(events: Any, trained: Taken | None) -> list[Announcement]:
    """Return the announcements that may be new, by time, without those that do not count."""
    valid = [event for event in _list_events(events, trained and trained.since) if not find_fault(event.extra)]
    read = [
        Announcement(
            event.id,
            event.timestamp.isoformat(),
            event.extra["source"],
            event.extra.get("digest"),
            event.extra.get("withdrawn") is True,
        )
        for event in valid
    ]
    return sorted(read, key=lambda announcement: (_order(announcement.time), announcement.id))


def find_faults(events: Any, store: Any) -> list[str]:
    """Return a line for each announcement that does not count; none that an earlier call returned."""
    checked: dict[str, str] = store.get(CHECKED) or {}
    since = _look_back(max(checked.values(), key=_order)) if checked else None
    listed = [event for event in _list_events(events, since) if str(event.id) not in checked]
    checked |= {str(event.id): event.timestamp.isoformat() for event in listed}
    if checked:
        oldest = _order(_look_back(max(checked.values(), key=_order)))
        store.set(CHECKED, {id: time for id, time in checked.items() if _order(time) >= oldest})
    faults = [(event.timestamp.isoformat(), find_fault(event.extra)) for event in listed]
    return [f"announcement of {time} is ignored: {fault}" for time, fault in faults if fault]


def find_fault(extra: Any) -> str:
    """Return why an announcement does not count, in one line; nothing if it does. A producer wrote its `extra`."""
    about = extra if isinstance(extra, Mapping) else {}
    if not forms.is_source(about.get("source")):
        shown = hide_passwords(repr(about.get("source"))).partition("?")[0]
        return f"source is {shown:.200}, not {forms.EXAMPLES}; announce it again"
    if not isinstance(about.get("digest"), str | None):
        return f"digest is {about['digest']!r:.200}, not text; announce it again"
    return ""


def list_pending(announced: Sequence[Announcement], trained: Taken | None) -> list[Announcement]:
    """Return the announcements that were not trained on. Of each source the last one counts."""
    last: dict[str, Announcement] = {}
    for announcement in announced:
        if not (trained and str(announcement.id) in trained.seen):
            last.pop(announcement.source, None)
            last[announcement.source] = announcement
    return [announcement for announcement in last.values() if not announcement.withdrawn]


def take(announced: Sequence[Announcement], pending: Sequence[Announcement]) -> Taken:
    """Return what one run takes of what is pending: a stored snapshot alone, or all before the next one."""
    snapshots = [at for at, announcement in enumerate(pending) if announcement.source.startswith(SNAPSHOT)]
    count = max(snapshots[0], 1) if snapshots else len(pending)
    until = pending[count - 1].time
    past = [other for other in announced if other not in pending[count:] and _order(other.time) <= _order(until)]
    data = [[announcement.source, announcement.digest] for announcement in pending[:count]]
    return Taken(until, {str(other.id): other.time for other in past}, data)


def advance(trained: Taken | None, taken: Taken | None) -> Taken | None:
    """Return what was trained on after a run that took these; it may be an old run, of which a task was cleared."""
    states = [state for state in (taken, trained) if state]
    if not states:
        return None
    newest = max(states, key=lambda state: _order(state.until))
    seen = {id: time for state in states for id, time in state.seen.items() if _order(time) >= _order(newest.since)}
    return newest._replace(seen=seen)


def merge_sources(sources: Sequence[Sequence[str | None]]) -> str:
    """Return the sources of some data as one, as `hardcase` takes several: URIs with spaces between."""
    names = [str(name) for name, _ in sources]
    return (
        names[0]
        if len(names) == 1
        else " ".join(Path(name).as_uri() if name.startswith("/") else name for name in names)
    )


def _list_events(events: Any, since: str | None) -> list[Any]:
    try:
        return list(events.after(since) if since else events)
    except AirflowRuntimeError as error:
        queued = "a run of the DAG announcements that is queued hides them (Airflow 3.3.2); switch that DAG on"
        raise AirflowException(f"announcements cannot be listed; if Airflow is well, {queued}: {error}") from error


def _look_back(time: str) -> str:
    return (_order(time) - OVERLAP).isoformat()


def _order(time: str) -> datetime:
    return datetime.fromisoformat(time)  # text would not do: a whole second has no fraction
