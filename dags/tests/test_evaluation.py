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
PARAMS = {"engine": "kubeflow", "settings": {}}
CHAMPION, BATCH = "image-screener@champion", "procedural://?samples=80&seed=7"


def planned(monkeypatch: Any, model: str = CHAMPION, source: str = BATCH, day: int = 1, **params: Any) -> Any:
    ti = Instance()
    context = {"ti": ti, "dag_run": SimpleNamespace(run_after=datetime(2026, 3, day, 5, tzinfo=UTC))}
    monkeypatch.setattr(provided, "get_current_context", lambda: context)
    return provided.plan_evaluation({**PARAMS, **params}, model, source), ti.pushed


def test_step_that_writes_to_mlflow_and_who_reads_it_agree_on_names() -> None:
    def named(file: str) -> dict[str, str]:
        text = (REPOSITORY / "hardcase" / file).read_text(encoding="utf-8")
        return dict(re.findall(r'^(\w+): Final = "(.*)"$', text, re.MULTILINE))

    tags = named("registry/tracking.py")
    assert (tags["RUN_TAG"], tags["RESULT_TAG"]) == (registry.RUN_TAG, registry.RESULT_TAG)
    assert named("report/summary.py")["EXPERIMENT"] == registry.EXPERIMENT


def test_order_to_kubeflow_is_what_the_compiled_pipeline_takes(connected: Any, mlflow: Any, monkeypatch: Any) -> None:
    from hardcase.kubeflow.launching import check_parameters, list_inputs

    version = connected.add_pipeline("hardcase-evaluation")
    task, pushed = planned(monkeypatch, settings={"eval.bootstrap": 100})
    assert task == "kubeflow_run"
    assert pushed["parameters"] == {"model": CHAMPION, "source": BATCH, "settings": {"eval.bootstrap": 100}}
    check_parameters("hardcase-evaluation", list_inputs(version), pushed["parameters"])
    assert re.fullmatch("evaluation-[0-9a-f]{16}", pushed["key"])


def test_one_key_for_a_version_a_batch_and_a_day(connected: Any, mlflow: Any, monkeypatch: Any) -> None:
    connected.add_pipeline("hardcase-evaluation")
    mlflow.champion = 7
    first = planned(monkeypatch)[1]["key"]
    assert planned(monkeypatch)[1]["key"] == first
    assert planned(monkeypatch, model="image-screener:7")[1]["key"] == first, "what the alias stands for"
    others = [
        planned(monkeypatch, **other) for other in ({"day": 2}, {"source": "procedural://"}, {"settings": {"seed": 1}})
    ]
    mlflow.champion = 8
    others.append(planned(monkeypatch))
    connected.make_version("pipeline-0", "changed")
    others.append(planned(monkeypatch))
    assert len({first, *(pushed["key"] for _, pushed in others)}) == 6


def test_without_mlflow_nothing_is_launched_on_kubeflow(connected: Any, monkeypatch: Any) -> None:
    connected.add_pipeline("hardcase-evaluation")
    with pytest.raises(AirflowFailException, match=r"connection hardcase_mlflow: there is none.*add it"):
        planned(monkeypatch)


def test_local_engine_needs_neither_kubeflow_nor_mlflow(monkeypatch: Any) -> None:
    task, pushed = planned(monkeypatch, engine="auto", settings={"eval.bootstrap": 100})
    arguments = ["evaluate", f"--model={CHAMPION}", f"--source={BATCH}", "--set=eval.bootstrap=100"]
    assert (task, pushed) == ("local_run", {"arguments": arguments})


def test_alias_is_resolved_where_mlflow_knows_it(mlflow: Any) -> None:
    assert resolve_version(CHAMPION) == CHAMPION
    mlflow.champion = 7
    assert resolve_version(CHAMPION) == "image-screener:7"
    assert resolve_version("image-screener:3") == "image-screener:3"


def test_both_engines_give_one_shape(mlflow: Any) -> None:
    mlflow.runs["run-0"] = evaluation(True)
    given = {
        "local": {"local_run": {**evaluation(True), "report": "/home/runs/run-0/report.html", "exit_code": 0}},
        "kubeflow": {"kubeflow_run": {"run_id": "run-0", "link": "https://kubeflow/run-0"}},
    }
    found = {
        engine: provided.result.function(SimpleNamespace(xcom_pull=lambda task_ids, xcoms=xcoms: xcoms.get(task_ids)))
        for engine, xcoms in given.items()
    }
    own = ("engine", "run", "report")
    local, kubeflow = ({name: facts[name] for name in facts if name not in own} for facts in found.values())
    assert local == kubeflow
    assert local["scores"] == evaluation()["scores"]["final"]
    assert (local["model"], local["version"], local["drift"]["drifted"]) == ("image-screener:7", 7, True)
    assert [found["local"][name] for name in own] == ["local", None, "file:///home/runs/run-0/report.html"]
    assert [found["kubeflow"][name] for name in own] == ["kubeflow", *["https://kubeflow/run-0"] * 2]


def test_run_that_mlflow_has_no_record_of_is_said(mlflow: Any) -> None:
    ti = SimpleNamespace(xcom_pull=lambda task_ids: {"run_id": "run-3", "link": ""} if "kube" in task_ids else None)
    for _ in range(2):
        with pytest.raises(AirflowException, match=r"run run-3 succeeded, but .* in the store, runs/run-3.json"):
            provided.result.function(ti)
        mlflow.runs["run-4"] = evaluation()


FACTS = {"engine": "kubeflow", "run": "https://kubeflow/run-0", "report": "https://kubeflow/run-0"}


@pytest.mark.parametrize("drifted", [False, True])
def test_drift_step_of_the_evaluation_alarms(drifted: bool, monkeypatch: Any, webhook: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_HARDCASE_ALERTS", json.dumps({"conn_type": "http", "host": webhook.url}))
    watch = dag("drift_watch").module
    outlets = {asset: SimpleNamespace(extra={}) for asset in (watch.DRIFT, watch.DRIFT_REPORT)}
    result = {**FACTS, **registry.describe_record(evaluation(drifted))}
    assert watch.publish.function(result, outlets) == outlets[watch.DRIFT_REPORT].extra == result
    params = {"model": CHAMPION}
    if drifted:
        watch.alarm.function(params, result, outlets)
        assert outlets[watch.DRIFT].extra == result
        [(_, _, body)] = webhook.heard
        assert body["text"] == "image-screener:7 has drifted: answer size 1.2 → 2.4"
        assert body["link"] == "https://kubeflow/run-0"
    else:
        with pytest.raises(AirflowException, match="no drift"):
            watch.alarm.function(params, result, outlets)
        assert (outlets[watch.DRIFT].extra, webhook.heard) == ({}, [])


def test_evaluation_without_a_reference_is_no_alarm() -> None:
    watch = dag("drift_watch").module
    result = {**FACTS, **registry.describe_record({**evaluation(), "drift": None})}
    with pytest.raises(AirflowException, match="no drift"):
        watch.alarm.function({"model": CHAMPION}, result, {})


def test_backfill_says_what_was_scored_and_how() -> None:
    module = dag("backfill").module
    outlets = {module.EVALUATION: SimpleNamespace(extra={})}
    result = {**FACTS, **registry.describe_record(evaluation())}
    module.publish.function({"version": "champion", "source": BATCH}, result, outlets)
    assert outlets[module.EVALUATION].extra == {**result, "source": BATCH}


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
