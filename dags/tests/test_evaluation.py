"""An evaluation on either engine: what is launched, by which key, and the one shape of what comes of it."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from hardcase_provider import evaluation as provided
from hardcase_provider import registry
from hardcase_provider.registry import resolve_version

from dags.tests.conftest import Instance, evaluation
from dags.tests.test_dags import dag

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = {"engine": "kubeflow", "profile": "smoke"}
CHAMPION, BATCH = "image-screener@champion", "procedural://?samples=80&seed=7"


def ordered(monkeypatch: Any, model: str = CHAMPION, source: str = BATCH, day: int = 1, **params: Any) -> Any:
    ti = Instance()
    context = {"ti": ti, "dag_run": SimpleNamespace(run_after=datetime(2026, 3, day, 5, tzinfo=UTC))}
    monkeypatch.setattr(provided, "get_current_context", lambda: context)
    return provided.ordered({**PARAMS, **params}, model, source), ti.pushed


def test_steps_that_tell_mlflow_and_who_reads_it_agree_on_names() -> None:
    def named(file: str) -> dict[str, str]:
        text = (REPOSITORY / "components" / file).read_text(encoding="utf-8")
        return dict(re.findall(r'^(\w+): Final = "(.*)"$', text, re.MULTILINE))

    tags = named("tracking.py")
    assert (tags["RUN_TAG"], tags["RESULT_TAG"]) == (registry.RUN_TAG, registry.RESULT_TAG)
    assert named("record/step.py")["EXPERIMENT"] == registry.EVALUATIONS
    assert named("report/summary.py")["EXPERIMENT"] == registry.RUNS


def test_order_to_kubeflow_is_what_the_compiled_pipeline_takes(connected: Any, mlflow: Any, monkeypatch: Any) -> None:
    from hardcase_provider.hooks import check_parameters

    version = connected.add_pipeline("hardcase-evaluation")
    task, pushed = ordered(monkeypatch)
    assert task == "kubeflow_run"
    assert pushed["parameters"] == {"model": CHAMPION, "source": BATCH, "profile": "smoke"}
    check_parameters(version, pushed["parameters"])
    assert re.fullmatch("evaluation-[0-9a-f]{16}", pushed["key"])


def test_one_key_for_a_version_a_batch_and_a_day(connected: Any, mlflow: Any, monkeypatch: Any) -> None:
    connected.add_pipeline("hardcase-evaluation")
    mlflow.champion = 7
    first = ordered(monkeypatch)[1]["key"]
    assert ordered(monkeypatch)[1]["key"] == first
    assert ordered(monkeypatch, model="image-screener:7")[1]["key"] == first, "what the alias stands for"
    others = [ordered(monkeypatch, **other) for other in ({"day": 2}, {"source": "procedural://"}, {"profile": "tiny"})]
    mlflow.champion = 8
    others.append(ordered(monkeypatch))
    connected.make_version("pipeline-0", "changed")
    others.append(ordered(monkeypatch))
    assert len({first, *(pushed["key"] for _, pushed in others)}) == 6


def test_without_mlflow_nothing_is_launched_on_kubeflow(connected: Any, monkeypatch: Any) -> None:
    connected.add_pipeline("hardcase-evaluation")
    with pytest.raises(AirflowFailException, match=r"connection hardcase_mlflow: there is none.*add it"):
        ordered(monkeypatch)


def test_local_engine_needs_neither_kubeflow_nor_mlflow(monkeypatch: Any) -> None:
    task, pushed = ordered(monkeypatch, engine="auto")
    assert (task, pushed) == ("local_run", {"arguments": ["evaluate", f"--model={CHAMPION}", f"--data={BATCH}"]})


def test_alias_is_resolved_where_mlflow_knows_it(mlflow: Any) -> None:
    assert resolve_version(CHAMPION) == CHAMPION
    mlflow.champion = 7
    assert resolve_version(CHAMPION) == "image-screener:7"
    assert resolve_version("image-screener:3") == "image-screener:3"


def test_both_engines_give_one_shape(mlflow: Any) -> None:
    mlflow.evaluated["run-3"] = evaluation()
    scores = evaluation()["scores"]["model"]
    printed = {"snapshot": "5" * 64, "accepted": 200, "samples": 200, "evaluation": "/e.parquet", "exit_code": 0}
    given = {
        "local": {"local_run": {**printed, "scores": {"chance": {}, "model": scores}}},
        "kubeflow": {"kubeflow_run": {"run_id": "run-3", "link": "https://kubeflow/run-3"}},
    }
    found = {
        engine: provided.result.function(SimpleNamespace(xcom_pull=lambda task_ids, xcoms=xcoms: xcoms.get(task_ids)))
        for engine, xcoms in given.items()
    }
    assert found["local"].keys() == found["kubeflow"].keys()
    assert found["local"]["scores"] == found["kubeflow"]["scores"] == scores
    assert (found["local"]["drift"], found["kubeflow"]["drift"]["drifted"]) == (None, False)
    assert (found["kubeflow"]["version"], found["kubeflow"]["run"]) == ("image-screener:7", "https://kubeflow/run-3")


def test_run_that_mlflow_was_not_told_of_is_said(mlflow: Any) -> None:
    ti = SimpleNamespace(xcom_pull=lambda task_ids: {"run_id": "run-3", "link": ""} if "kube" in task_ids else None)
    for _ in range(2):
        with pytest.raises(AirflowException, match=r"run run-3 succeeded, but .*evaluations/<model>/run-3.json"):
            provided.result.function(ti)
        mlflow.evaluated["run-4"] = evaluation()


@pytest.mark.parametrize(
    ("fell", "drifted", "alarmed"),
    [
        (False, False, []),
        (True, False, ["the scores"]),
        (False, True, ["the pipeline's drift step"]),
        (True, True, ["the scores", "the pipeline's drift step"]),
    ],
)
def test_either_verdict_alarms_and_the_report_says_which(
    fell: bool, drifted: bool, alarmed: list[str], monkeypatch: Any, tmp_path: Path, webhook: Any
) -> None:
    monkeypatch.setenv("HARDCASE_REPORTS", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps({"conn_type": "http", "host": webhook.url}))
    told = evaluation(0.6, drifted)
    result = {**{name: told[name] for name in provided.COMMON}, "scores": told["scores"]["model"], "engine": "kubeflow"}
    result |= {"version": told["model"], "drift": told["drift"], "run": "https://kubeflow/run-0"}
    watch = dag("drift_watch").module
    before = evaluation(0.9 if fell else 0.6)["scores"]["model"]
    promoted = {"verdict": "promoted", "version": 7, "scores": before}
    events = {watch.MODEL: [SimpleNamespace(extra=promoted)], watch.DRIFT_REPORT: []}
    monkeypatch.setattr(watch, "get_current_context", lambda: {"inlet_events": events})
    outlets = {asset: SimpleNamespace(extra={}) for asset in (watch.DRIFT, watch.DRIFT_REPORT)}
    found = watch.compare.function({"model": CHAMPION, "level": 0.01}, result, "scheduled__1", outlets)
    assert (found["drifted"], found["alarmed_by"]) == (bool(alarmed), alarmed)
    assert outlets[watch.DRIFT_REPORT].extra["alarmed_by"] == alarmed
    page = (tmp_path / "scheduled__1" / "report.html").read_text(encoding="utf-8")
    assert ("Drift, by " + " and ".join(alarmed).replace("'", "&#x27;") if alarmed else "No drift") in page
    assert "image-screener:7 when it was promoted" in page
    assert "<td>answer size<td>1.2<td>2.4<td>0.0001<td>" + ("drifted" if drifted else "") in page
    if alarmed:
        watch.alarm.function(found, outlets)
        assert outlets[watch.DRIFT].extra["alarmed_by"] == alarmed
        [(_, _, body)] = webhook.heard
        assert body["text"].startswith(f"image-screener:7 has drifted by {' and '.join(alarmed)}: ")
        assert ("answer size 1.2 → 2.4" in body["text"]) is drifted
    else:
        with pytest.raises(AirflowException, match="no drift"):
            watch.alarm.function(found, outlets)


@pytest.mark.parametrize(("version", "told"), [(None, "champion"), ("image-screener:7", "image-screener:7")])
def test_backfill_says_what_was_scored_and_how(version: str | None, told: str) -> None:
    module = dag("backfill").module
    outlets = {module.EVALUATION: SimpleNamespace(extra={})}
    result = {"snapshot": "5" * 64, "samples": 200, "scores": {"overall": 0.6}, "version": version, "drift": None}
    module.publish.function({"version": "champion", "source": BATCH}, result, outlets)
    assert outlets[module.EVALUATION].extra == {**result, "version": told, "source": BATCH}


def test_backfill_orders_the_version_by_its_full_name(connected: Any, mlflow: Any, monkeypatch: Any) -> None:
    connected.add_pipeline("hardcase-evaluation")
    ti = Instance()
    context = {"ti": ti, "dag_run": SimpleNamespace(run_after=datetime(2026, 3, 1, 5, tzinfo=UTC))}
    monkeypatch.setattr(provided, "get_current_context", lambda: context)
    choose = dag("backfill").module.choose.function
    named = {}
    for version in ("7", "challenger"):
        assert choose({**PARAMS, "version": version, "source": BATCH}) == "kubeflow_run"
        named[version] = ti.pushed["parameters"]["model"]
    assert named == {"7": "image-screener:7", "challenger": "image-screener@challenger"}
