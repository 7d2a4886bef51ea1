"""Airflow 3.3.2 in simulated time, as far as it decides which data the DAG `retraining` trains on.

The tasks are those of the DAG files. Airflow's part is written after these places of its source:

    events of a paused DAG start nothing          airflow/assets/manager.py:354
    events that wait for one run start one run    airflow/assets/manager.py:816-819, :834
    no run by events while one is active          airflow/models/dag.py:767-788
    runs and tasks of a paused DAG wait           airflow/models/dagrun.py:674, :725
    a task that a branch skipped is skipped again airflow/ti_deps/deps/not_previously_skipped_dep.py:87
    a task's events are stored with its success   airflow/api_fastapi/execution_api/routes/task_instances.py:670
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

MINUTE = timedelta(minutes=1)
WEEK = timedelta(days=7)
TASKS = {"plan": (), "local_run": ("plan",), "publish": ("local_run",), "follow": ("local_run",)}
DONE = {"success", "failed", "skipped", "upstream_failed"}
RETRIES = 2
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Crash(Exception):
    """The process of a task, or its machine, died."""


@dataclass
class Event:
    id: int
    asset: Any
    extra: dict[str, Any]
    timestamp: datetime
    visible: datetime  # from when on others see it: its transaction is committed


@dataclass
class Run:
    id: str
    params: dict[str, Any]
    run_after: datetime = LONG_AGO
    state: str = "queued"
    tasks: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TASKS, ""))
    tries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASKS, 0))
    left: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASKS, RETRIES))
    xcoms: dict[tuple[str, str], Any] = field(default_factory=dict)
    cleared: bool = False


class Events:
    """The accessor of an Asset's events: `after` is inclusive (execution_api/routes/asset_events.py:101)."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def after(self, moment: str) -> "Events":
        return Events([each for each in self.events if each.timestamp >= datetime.fromisoformat(moment)])

    def __iter__(self) -> Any:
        return iter(self.events)


class Simulated:
    """One Airflow with the DAGs `retraining` and `announcements`, and the engine that trains.

    Attributes:
        trained: sources and digests of each training that succeeded, by its key.
        published: each run that was published, with the sources and digests that it had taken.
    """

    def __init__(self, module: Any, announcing: Any, chance: random.Random) -> None:
        self.module, self.announcing, self.chance = module, announcing, chance
        self.now = datetime(2026, 3, 2, 3, 30, tzinfo=UTC)
        self.weekly = self.now + WEEK
        self.events: list[Event] = []
        self.waiting: dict[Any, datetime] = {}  # rows of asset_dag_run_queue
        self.runs: list[Run] = []
        self.store: dict[str, Any] = {}
        self.refused: list[str] = []  # messages of the task `check`
        self.paused = self.scheduler_down = self.triggerer_down = self.calm = False
        self.ends: dict[str, tuple[datetime, bool]] = {}  # of trainings under way: when, and whether they succeed
        self.trained: dict[str, list[list[Any]]] = {}
        self.published: list[tuple[Run, list[tuple[str, str]]]] = []

    def emit(self, asset: Any, extra: dict[str, Any], lag: timedelta = timedelta()) -> Event:
        event = Event(len(self.events) + 1, asset, extra, self.now, self.now + lag)
        self.events.append(event)
        if not lag:
            self._queue(event)
        return event

    def _queue(self, event: Event) -> None:
        # The DAG `announcements` is never paused, `retraining` may be.
        if event.asset is self.module.NEW_DATA or (event.asset is not self.module.MODEL and not self.paused):
            self.waiting.setdefault(event.asset, event.timestamp)

    def announce(self, source: Any, lag: int = 0, **more: Any) -> Event:
        return self.emit(self.module.NEW_DATA, {"source": source, **more}, lag * MINUTE)

    def start(self, name: str = "manual", **params: Any) -> Run:
        defaults = {"profile": "tiny", "source": None, "seed": None, "settings": {}, "engine": "local", "force": False}
        run = Run(f"{name}__{len(self.runs)}", {**defaults, **params}, run_after=self.now)
        self.runs.append(run)
        return run

    def clear(self, run: Run, task: str) -> None:
        """Clear a task and those after it; a training under way is stopped."""
        tasks = [task, *(name for name, before in TASKS.items() if task in before)]
        tasks += [name for name in ("publish", "follow") if "local_run" in tasks and name not in tasks]
        if "local_run" in tasks:
            self.ends.pop(run.xcoms.get(("plan", "key"), ""), None)
        run.tasks.update(dict.fromkeys(tasks, ""))
        run.left.update(dict.fromkeys(tasks, RETRIES))
        run.state, run.cleared = "queued", True

    def active(self) -> list[Run]:
        return [run for run in self.runs if run.state in ("queued", "running")]

    def tick(self) -> None:
        before, self.now = self.now, self.now + self.chance.choice((1, 5, 30)) * MINUTE
        for event in self.events:
            if event.timestamp < event.visible and before < event.visible <= self.now:
                self._queue(event)
        if self.scheduler_down:
            return
        if self.waiting.pop(self.module.NEW_DATA, None):
            self._announce()
        if not self.paused and not self.active():
            if self.waiting:
                self._start_by_events()
            elif self.now >= self.weekly:
                self.weekly += WEEK
                self.start("scheduled")
        if not self.paused and not any(run.state == "running" for run in self.runs):
            for run in self.active()[:1]:
                run.state = "running"
        for run in self.runs:
            if run.state == "running":
                self._advance(run)

    def _start_by_events(self) -> None:
        run = self.start("asset")
        run.run_after = max(self.waiting.values())
        self.waiting.clear()

    def _announce(self) -> None:
        """Run the DAG `announcements`."""
        outlets = {self.module.PENDING: SimpleNamespace(extra={})}
        given = self._list_data(self.store.__setitem__)
        with suppress(AirflowSkipException):
            self.announcing.start.function(outlet_events=outlets, **given)
            self.emit(self.module.PENDING, outlets[self.module.PENDING].extra)
        try:
            self.announcing.check.function(**given)
        except AirflowFailException as error:
            self.refused.append(str(error))

    def _list_data(self, write: Callable[[str, Any], None]) -> dict[str, Any]:
        data = [each for each in self.events if each.asset is self.module.NEW_DATA and each.visible <= self.now]
        state = SimpleNamespace(get=self.store.get, set=write)
        states = {self.module.NEW_DATA: state, self.module.MODEL: state}
        return {"inlet_events": {self.module.NEW_DATA: Events(data)}, "asset_state_store": states}

    def _advance(self, run: Run) -> None:
        """Let a run's tasks go one step."""
        if self.paused:
            return
        if run.tasks["local_run"] == "deferred" and not self.triggerer_down:
            self._look_at_training(run)
        for task, needs in TASKS.items():
            states = [run.tasks[need] for need in needs]
            if run.tasks[task] or not all(state in DONE for state in states):
                continue
            if task == "local_run" and states == ["success"] and ("plan", "key") not in run.xcoms:
                run.tasks[task] = "skipped"  # by the branch, also after it was cleared
            elif task != "follow" and any(state != "success" for state in states):
                failed = any(state in ("failed", "upstream_failed") for state in states)
                run.tasks[task] = "upstream_failed" if failed else "skipped"
            else:
                self._execute(run, task)
            break
        if all(state in DONE for state in run.tasks.values()):
            leaves = {run.tasks[leaf] for leaf in ("publish", "follow")}
            run.state = "failed" if leaves & {"failed", "upstream_failed"} else "success"

    def _execute(self, run: Run, task: str) -> None:
        run.tries[task] += 1
        run.xcoms = {key: value for key, value in run.xcoms.items() if key[0] != task}
        crash_at = self.chance.randrange(12) if not self.calm and self.chance.random() < 0.3 else -1
        try:
            getattr(self, f"_{task}")(run, self._living(crash_at))
        except AirflowSkipException:
            run.tasks[task] = "skipped"
        except AirflowFailException:
            run.tasks[task] = "failed"
        except Crash:
            run.left[task] -= 1
            run.tasks[task] = "" if run.left[task] >= 0 else "failed"

    def _living(self, crash_at: int) -> Callable[[], None]:
        """Return what is called at each thing that a task does to the outside; at one of them it dies."""
        done = iter(range(100))

        def live() -> None:
            if next(done) == crash_at:
                raise Crash

        return live

    def _context(self, run: Run, task: str, live: Callable[[], None]) -> dict[str, Any]:
        def push(key: str, value: Any) -> None:
            live()
            run.xcoms[task, key] = value

        def write(key: str, value: Any) -> None:
            live()
            self.store[key] = value
            live()

        ti = SimpleNamespace(
            try_number=run.tries[task],
            xcom_push=push,
            xcom_pull=lambda task_ids, key="return_value": run.xcoms.get((task_ids, key)),
        )
        return {"ti": ti, **self._list_data(write)}

    def _plan(self, run: Run, live: Callable[[], None]) -> None:
        given = self._context(run, "plan", live)
        self.module.plan.function(run.params, run.id, **given)
        live()
        run.tasks["plan"] = "success"

    def _local_run(self, run: Run, live: Callable[[], None]) -> None:
        """Attach to the training of that key, or start it, and wait for it in the triggerer."""
        key = run.xcoms["plan", "key"]
        if key not in self.trained and key not in self.ends:
            succeeds = self.calm or self.chance.random() < 0.7
            self.ends[key] = (self.now + self.chance.choice((5, 60, 300)) * MINUTE, succeeds)
        live()
        run.tasks["local_run"] = "deferred"

    def _look_at_training(self, run: Run) -> None:
        key = run.xcoms["plan", "key"]
        end, succeeds = self.ends.get(key, (self.now, key in self.trained))
        if self.now < end:
            return
        self.ends.pop(key, None)
        if succeeds:
            taken = run.xcoms.get(("plan", "taken"))
            self.trained.setdefault(key, taken["data"] if taken else [])
            verdict = self.chance.choice(("promoted", "rejected"))
            record = {"run_id": key, "status": "succeeded", "gate": {"verdict": verdict, "reasons": []}}
            run.xcoms["local_run", "return_value"] = record
            run.tasks["local_run"] = "success"
        else:
            run.left["local_run"] -= 1
            run.tasks["local_run"] = "" if run.left["local_run"] >= 0 else "failed"

    def _publish(self, run: Run, live: Callable[[], None]) -> None:
        outlets = {self.module.MODEL: SimpleNamespace(extra={})}
        given = self._context(run, "publish", live)
        del given["inlet_events"]
        before = self.store.get("trained")
        self.module.publish.function(outlet_events=outlets, **given)
        live()
        self.emit(self.module.MODEL, outlets[self.module.MODEL].extra)
        run.tasks["publish"] = "success"
        taken = run.xcoms.get(("plan", "taken"))
        self.published.append((run, [tuple(pair) for pair in taken["data"]] if taken else []))
        if before:
            assert before["until"] <= self.store["trained"]["until"], "what was trained on is never forgotten"

    def _follow(self, run: Run, live: Callable[[], None]) -> None:
        outlets = {self.module.PENDING: SimpleNamespace(extra={})}
        self.module.follow.function(outlet_events=outlets, **self._context(run, "follow", live))
        live()
        self.emit(self.module.PENDING, outlets[self.module.PENDING].extra)
        run.tasks["follow"] = "success"
