"""Every announced batch is trained on, once: whatever is announced, paused, cleared, restarted and fails meanwhile."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRuntimeError,
    AirflowSkipException,
    ErrorType,
)
from airflow.sdk.execution_time.comms import ErrorResponse
from hardcase_provider import announcements
from hardcase_provider.announcements import Taken, advance, list_pending, merge_sources

from dags.tests.simulated import Events, Simulated
from dags.tests.test_dags import dag

STEPS = 60
PARTS = ("paused", "scheduler_down", "triggerer_down")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("hardcase_provider.planning.code_digest", lambda: "code")
    monkeypatch.setattr("hardcase_provider.alerts.alert", lambda *_, **__: None)
    return dag("retraining").module


@pytest.fixture(scope="module")
def announcing() -> Any:
    return dag("announcements").module


def disturb(airflow: Simulated, chance: random.Random) -> None:
    """Let one thing happen that Airflow, its users and producers of data do."""
    announced = [each for each in airflow.events if each.asset is airflow.module.NEW_DATA]
    digest = f"digest {len(airflow.events)}"
    match chance.randrange(14):
        case 0 | 1 | 2 | 3:
            kind = chance.choice(("s3://bucket/{}", "s3://bucket/{}", "/data/{}", "snapshot:{}"))
            lag = chance.choice((0, 0, 40))
            airflow.announce(kind.format(chance.randrange(30)), lag, digest=digest)
        case 4:
            airflow.announce(chance.choice(("photos", "s3://a b", None, 7)), digest=digest)
        case 5 if announced:
            airflow.announce(chance.choice(announced).extra["source"], withdrawn=True)
        case 6 | 7 | 8 as number:
            setattr(airflow, PARTS[number - 6], True)
        case 9:
            airflow.start(source=chance.choice((None, "procedural://?samples=8")), force=chance.random() < 0.5)
        case 10:
            airflow.emit(airflow.module.DRIFT, {"drifted": True})
        case 11 | 12 if airflow.runs:
            run = chance.choice(airflow.runs)
            reached = [task for task, state in run.tasks.items() if state]
            if reached:
                airflow.clear(run, chance.choice(reached))
        case _:
            airflow.weekly = airflow.now
    for _ in range(chance.randrange(8)):
        airflow.tick()
    for part in PARTS:
        if chance.random() < 0.5:
            setattr(airflow, part, False)


def settle(airflow: Simulated) -> None:
    """Let all be well again for three weeks."""
    for part in PARTS:
        setattr(airflow, part, False)
    airflow.calm = True
    for _ in range(3):
        airflow.weekly = airflow.now
        for _ in range(400):
            airflow.tick()
            if not airflow.active() and not airflow.waiting and airflow.weekly > airflow.now:
                break
        else:
            raise AssertionError("runs start each other without an end")


@pytest.mark.parametrize("seed", range(200))
def test_every_announced_batch_is_trained_on_once_or_covered_by_a_later_run(
    seed: int, module: Any, announcing: Any
) -> None:
    chance = random.Random(seed)
    airflow = Simulated(module, announcing, chance)
    for _ in range(STEPS):
        disturb(airflow, chance)
    settle(airflow)
    announced = [each for each in airflow.events if each.asset is module.NEW_DATA]
    read = announcements.list_announced(Events(announced), None)
    trained_on = {tuple(pair) for data in airflow.trained.values() for pair in data}
    for each in read:
        later = [other for other in read if other.source == each.source and other.time >= each.time]
        withdrawn = any(other.withdrawn for other in later)
        covered = any((other.source, other.digest) in trained_on for other in later)
        assert withdrawn or covered, f"{each} is lost"
    trained = announcements.read_trained(SimpleNamespace(get=airflow.store.get))
    assert list_pending(announcements.list_announced(Events(announced), trained), trained) == []
    twice = Counter(pair for run, pairs in airflow.published if not run.cleared for pair in pairs)
    assert [pair for pair, count in twice.items() if count > 1] == []


def test_interleavings_meet_what_they_are_to_survive(module: Any, announcing: Any) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(50):
        chance = random.Random(seed)
        airflow = Simulated(module, announcing, chance)
        for _ in range(STEPS):
            disturb(airflow, chance)
        for run, pairs in airflow.published:
            kinds[run.id.partition("__")[0]] += 1
            kinds["merged"] += len(pairs) > 1
        kinds["failed"] += sum(run.state == "failed" for run in airflow.runs)
        kinds["cleared"] += sum(run.cleared for run in airflow.runs)
        kinds["followed"] += sum(each.asset is module.PENDING for each in airflow.events)
    print(dict(kinds))
    assert min(kinds[kind] for kind in ("asset", "scheduled", "manual", "merged", "failed", "cleared", "followed")) > 5


@pytest.fixture
def airflow(module: Any, announcing: Any) -> Simulated:
    """One in which nothing goes wrong by itself."""
    simulated = Simulated(module, announcing, random.Random(0))
    simulated.calm = True
    return simulated


def run_all(airflow: Simulated) -> list[str]:
    """Let everything that was started end; return the source of each run that was published."""
    before = len(airflow.published)
    for _ in range(200):
        airflow.tick()
    return [run.xcoms["plan", "parameters"].get("source", "") for run, _ in airflow.published[before:]]


def test_all_that_was_announced_while_the_dag_was_paused_is_one_run(airflow: Simulated) -> None:
    airflow.paused = True
    airflow.announce("/data/march", digest="1")
    airflow.announce("s3://bucket/april", digest="1")
    airflow.tick()
    airflow.paused = False
    assert run_all(airflow) == [], "an event of a paused DAG starts nothing"
    airflow.weekly = airflow.now
    assert run_all(airflow) == ["file:///data/march s3://bucket/april"], "the scheduled run takes it"


def test_data_that_is_announced_while_a_run_is_active_starts_another(airflow: Simulated) -> None:
    airflow.announce("s3://bucket/march", digest="1")
    while not airflow.ends:
        airflow.tick()
    airflow.paused = True  # so that its event starts nothing
    airflow.announce("s3://bucket/april", digest="1")
    airflow.paused = False
    assert run_all(airflow) == ["s3://bucket/march", "s3://bucket/april"]


@pytest.mark.parametrize("start", ["scheduled", "manual", "drift"])
def test_every_kind_of_run_takes_announced_data_and_later_trains_on_the_same(airflow: Simulated, start: str) -> None:
    def begin() -> None:
        if start == "drift":
            airflow.emit(airflow.module.DRIFT, {})
        elif start == "manual":
            airflow.start()
        else:
            airflow.weekly = airflow.now

    airflow.announce("s3://bucket/march", digest="1")
    airflow.waiting.clear()
    begin()
    assert run_all(airflow) == ["s3://bucket/march"]
    begin()
    assert run_all(airflow) == [], "nothing new"
    airflow.start(force=True)
    assert run_all(airflow) == ["s3://bucket/march"], "never back to the profile's own source"


def test_run_on_a_source_of_its_own_leaves_announced_data_to_the_next(airflow: Simulated) -> None:
    airflow.announce("s3://bucket/march", digest="1")
    airflow.waiting.clear()
    airflow.start(source="procedural://?samples=8")
    assert run_all(airflow) == ["procedural://?samples=8", "s3://bucket/march"]


def test_default_source_is_taken_until_data_is_announced(airflow: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow.module, "SOURCE", "procedural://?samples=8 procedural://?samples=9")
    airflow.start()
    assert run_all(airflow) == ["procedural://?samples=8 procedural://?samples=9"]
    airflow.announce("s3://bucket/march", digest="1")
    assert run_all(airflow) == ["s3://bucket/march"]
    airflow.start(force=True)
    assert run_all(airflow) == ["s3://bucket/march"]


def test_default_source_that_the_form_would_refuse_breaks_the_dag_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_SOURCE", "photos")
    with pytest.raises(ValueError, match="HARDCASE_SOURCE is 'photos', not s3://bucket/prefix"):
        dag("retraining")


def test_forced_run_whose_plan_is_cleared_is_forced_again(airflow: Simulated) -> None:
    airflow.start(source="procedural://?samples=8")
    run_all(airflow)
    forced = airflow.start(source="procedural://?samples=8", force=True)
    run_all(airflow)
    trainings = len(airflow.trained)
    airflow.clear(forced, "plan")
    assert run_all(airflow) == ["procedural://?samples=8"]
    assert len(airflow.trained) == trainings + 1


def test_failed_run_leaves_its_data_to_the_next_and_does_not_start_it(airflow: Simulated) -> None:
    airflow.announce("s3://bucket/march", digest="1")
    while not airflow.ends:
        airflow.tick()
    airflow.runs[0].left["local_run"] = 0
    airflow.ends = {key: (end, False) for key, (end, _) in airflow.ends.items()}
    assert run_all(airflow) == []
    assert [run.state for run in airflow.runs] == ["failed"]
    airflow.announce("s3://bucket/april", digest="1")
    assert run_all(airflow) == ["s3://bucket/march s3://bucket/april"]


def test_announced_snapshot_is_trained_on_alone_and_what_came_after_it_follows(airflow: Simulated) -> None:
    airflow.paused = True
    for source in ("s3://bucket/march", "snapshot:abc", "s3://bucket/april"):
        airflow.announce(source, digest="1")
        airflow.tick()
    airflow.paused = False
    airflow.weekly = airflow.now
    assert run_all(airflow) == ["s3://bucket/march", "snapshot:abc", "s3://bucket/april"]


def test_withdrawn_announcement_is_not_trained_on(airflow: Simulated) -> None:
    airflow.announce("s3://bucket/broken", digest="1")
    airflow.announce("s3://bucket/march", digest="1")
    airflow.announce("s3://bucket/broken", withdrawn=True)
    assert run_all(airflow) == ["s3://bucket/march"]
    airflow.announce("s3://bucket/broken", digest="2")
    assert run_all(airflow) == ["s3://bucket/broken"]


def test_source_that_is_not_there_says_how_to_withdraw_it(airflow: Simulated, program: Any) -> None:
    program("""echo '{"error": {"message": "source s3://b/gone: no objects there"}}'; exit 2""")
    plan, ti = airflow.module.plan.function, {"ti": SimpleNamespace(xcom_push=lambda **_: None, try_number=1)}
    airflow.announce("s3://b/gone")
    run = airflow.start()
    given = {**airflow._context(run, "plan", lambda: None), **ti}
    with pytest.raises(AirflowFailException, match=r'no objects there; if it is not .* again with "withdrawn": true'):
        plan(run.params, run.id, **given)


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"source": "photos"}, "source is 'photos', not s3://bucket/prefix, file:///path"),
        ({"source": "/data/two words"}, "source is '/data/two words', not s3"),
        ({"source": "s3://bucket/march\n"}, "source is 's3://bucket/march"),
        ({"source": ["s3://bucket/march"]}, "source is "),
        ({"source": "s3://user:secret@bucket/march"}, "source is 's3://***@bucket/march', not s3"),
        ({"source": "s3://bucket/march?X-Amz-Signature=secret"}, "source is 's3://bucket/march, not s3"),
        ({}, "source is None, not s3"),
        (None, "source is None, not s3"),
        ({"source": "s3://bucket/march", "digest": 7}, "digest is 7, not text; announce it again"),
    ],
)
def test_announcement_that_the_form_would_refuse_fails_at_once_in_one_line(
    airflow: Simulated, extra: Any, fault: str
) -> None:
    airflow.emit(airflow.module.NEW_DATA, extra)
    airflow.announce("s3://bucket/april", digest="1")
    assert run_all(airflow) == ["s3://bucket/april"], "it does not stop others"
    [line] = airflow.refused
    assert line.startswith(f"announcement of 2026-03-02T03:30:00+00:00 is ignored: {fault}")
    assert "\n" not in line
    assert "secret" not in line


def test_announcement_that_is_refused_starts_no_retraining(airflow: Simulated) -> None:
    airflow.announce("photos")
    run_all(airflow)
    assert (airflow.runs, len(airflow.refused)) == ([], 1)
    airflow.announce("s3://bucket/march", digest="1")
    airflow.announce("pictures")
    assert run_all(airflow) == ["s3://bucket/march"]
    assert ["photos" in line for line in airflow.refused] == [True, False], "each is told once"


def test_announcements_that_airflow_cannot_list_are_said(airflow: Simulated) -> None:
    class Broken:
        def __iter__(self) -> Any:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 500}))

    with pytest.raises(AirflowException, match=r"cannot be listed; .* DAG announcements that is queued hides them"):
        announcements.list_announced(Broken(), None)


def test_what_was_trained_on_is_kept_also_by_a_cleared_run_of_last_week() -> None:
    old = Taken("2026-03-01T00:00:00+00:00", {"1": "2026-03-01T00:00:00+00:00"}, [["s3://a", None]])
    new = Taken("2026-03-08T00:00:00+00:00", {"2": "2026-03-08T00:00:00+00:00"}, [["s3://b", None]])
    assert advance(new, old) == advance(old, new) == new
    assert advance(None, None) is None


def test_local_folders_are_merged_as_uris() -> None:
    assert merge_sources([["/data/a", None]]) == "/data/a"
    assert merge_sources([["/data/a%", None], ["s3://b/c", "1"]]) == "file:///data/a%25 s3://b/c"
    assert merge_sources([]) == ""


def test_run_without_a_plan_starts_no_other(airflow: Simulated) -> None:
    given = airflow._context(airflow.start(), "follow", lambda: None)
    airflow.announce("s3://bucket/march")
    with pytest.raises(AirflowSkipException, match="plan did not look"):
        airflow.module.follow.function(outlet_events={}, **given)
