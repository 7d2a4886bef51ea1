"""The DAG files: they parse fast, import nothing heavy, and take only what makes sense."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, ParamValidationError
from hardcase_provider import planning
from hardcase_provider.forms import write_arguments
from hardcase_provider.planning import ABSENT, code_digest, fingerprint, newest_batch, source_digest

DAGS = Path(__file__).resolve().parents[1]
FILES = ("retraining", "drift_watch", "backfill", "announcements")
# In a process of its own, as Airflow's does it: Airflow is there already, the file is not.
PARSE = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
started = time.perf_counter()
bag = DagBag(sys.argv[1])
seconds = time.perf_counter() - started
heavy = sorted({"torch", "transformers", "kfp", "kubernetes", "pandas", "numpy"} & set(sys.modules))
once = [task.task_id for dag in bag.dags.values() for task in dag.tasks if not task.retries]
print("\\n" + json.dumps([seconds, sorted(bag.dags), bag.import_errors, heavy, once]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airflow")


@pytest.mark.parametrize("name", FILES)
def test_file_parses_in_a_second_without_heavy_imports_and_each_task_is_tried_again(
    name: str, home: Path, record_property: Any
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARSE, DAGS / f"{name}.py"],
        env={"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, found, errors, heavy, once = json.loads(done.stdout.splitlines()[-1])
    record_property("seconds", seconds)
    print(f"{name}: {seconds:.3f} s")
    assert (found, errors, heavy, once) == ([name], {}, [], [])
    assert seconds < 1


def dag(name: str) -> Any:
    from importlib import util

    spec = util.spec_from_file_location(f"dag_{name}", DAGS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(module=module, params=getattr(module, "PARAMS", {}))


@pytest.mark.parametrize(
    ("name", "param", "value"),
    [
        ("retraining", "profile", "smoke"),
        ("retraining", "source", None),
        ("retraining", "source", "procedural://?samples=80&seed=7"),
        ("retraining", "source", "s3://bucket/prefix"),
        ("retraining", "source", "/data/photos"),
        ("retraining", "source", "s3://bucket/march s3://bucket/april file:///data/may"),
        ("retraining", "seed", 0),
        ("retraining", "engine", "local"),
        ("drift_watch", "model", "image-screener:3"),
        ("backfill", "version", "12"),
        ("backfill", "version", "champion"),
        ("backfill", "engine", "kubeflow"),
        ("drift_watch", "settings", {"eval.bootstrap": 100}),
        ("retraining", "settings", {"sft.steps": 2, "seed": 1}),
    ],
)
def test_form_takes_what_makes_sense(name: str, param: str, value: Any) -> None:
    assert dag(name).params[param].resolve(value) == value


@pytest.mark.parametrize(
    ("name", "param", "value"),
    [
        ("retraining", "profile", "nonsense"),
        ("retraining", "source", ""),
        ("retraining", "source", "photos"),
        ("retraining", "source", "--set=sft.steps=1"),
        ("retraining", "source", "/data/two words"),
        ("retraining", "source", "s3://bucket/march snapshot:abc"),
        ("drift_watch", "batches", "s3://bucket/march s3://bucket/april"),
        ("retraining", "seed", -1),
        ("retraining", "seed", "1"),
        ("retraining", "engine", "airflow"),
        ("retraining", "force", "yes"),
        ("drift_watch", "model", "image-screener"),
        ("retraining", "settings", {"--profile": "tiny"}),
        ("backfill", "settings", "sft.steps=1"),
        ("backfill", "version", "0"),
        ("backfill", "version", "latest"),
    ],
)
def test_form_refuses_what_does_not(name: str, param: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        dag(name).params[param].resolve(value)


def test_form_offers_the_profiles_that_the_compiled_pipeline_takes() -> None:
    from tests.support.kubeflow_server import compiled

    spec = compiled("hardcase-retraining")
    takes = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
    assert dag("retraining").params["profile"].schema["enum"] == takes["profile"]["literals"]


def test_settings_reach_the_program_as_they_were_given() -> None:
    parameters = {"profile": "smoke", "settings": {"sft.steps": 2, "register.name": "a b", "grpo.lr": 0.1, "x": None}}
    settings = ["--set=sft.steps=2", '--set=register.name="a b"', "--set=grpo.lr=0.1", "--set=x=null"]
    assert write_arguments(parameters) == ["--profile=smoke", *settings]


def test_list_of_dags_shows_the_weekly_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_SCHEDULE", "30 4 * * 2")
    assert "schedule 30 4 * * 2 UTC" in dag("retraining").module.kubeflow_run.dag.tags


def test_every_default_is_valid() -> None:
    for name in FILES:
        for param in dag(name).params.values():
            param.resolve()


def test_program_is_asked_what_a_source_holds(program: Any, tmp_path: Path) -> None:
    program(f"""echo "$*" >> {tmp_path}/asked; echo '{{"source": "s", "digest": "d"}}'""")
    assert source_digest("/data/photos", "local") == "d"
    assert source_digest("s3://bucket/march", "kubeflow") == "d"
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked == ["source-digest /data/photos --json", "source-digest s3://bucket/march --json"]


def test_source_that_says_it_itself_asks_nobody(program: Any) -> None:
    program("exit 1")
    assert source_digest("procedural://?samples=1", "kubeflow") == "procedural://?samples=1"
    assert source_digest("snapshot:abc", "local") == "snapshot:abc"
    assert source_digest(None, "kubeflow") == ""


def test_source_that_is_not_there_fails_at_once(program: Any) -> None:
    program("""echo '{"error": {"message": "source /gone: no objects there"}}'; exit 2""")
    with pytest.raises(AirflowFailException, match="source /gone: no objects there"):
        source_digest("/gone", "local")
    with pytest.raises(AirflowFailException, match="no objects there"):
        source_digest("s3://bucket/gone", "kubeflow")
    program("""echo '{"error": {"message": "source s3://b/c: cannot be listed: 403"}}'; exit 2""")
    assert source_digest("s3://bucket/closed", "kubeflow") is None, "Kubeflow may see more than this machine"
    program("echo words >&2; exit 1")
    with pytest.raises(AirflowException, match="hardcase source-digest ended with 1: words"):
        source_digest("/gone", "local")


def test_program_says_of_an_empty_prefix_what_is_looked_for() -> None:
    assert f'InputError(f"source {{uri}}: {ABSENT};' in (DAGS.parent / "hardcase/data/listing.py").read_text("utf-8")


def test_folder_is_not_sent_to_kubeflow() -> None:
    with pytest.raises(AirflowFailException, match="source /data/photos: Kubeflow's steps cannot see it"):
        source_digest("/data/photos", "kubeflow")


def test_changed_code_is_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(code_digest()) == 64
    monkeypatch.setattr(planning, "PACKAGE", tmp_path)
    empty = code_digest()
    (tmp_path / "a.py").write_text("1\n", encoding="utf-8")
    assert code_digest() != empty
    assert fingerprint(a=1, b=2) == fingerprint(b=2, a=1) != fingerprint(a=1, b=3)


def test_newest_batch_is_the_last_by_name(tmp_path: Path) -> None:
    for name in ("2026-01-01", "2026-02-01", "notes"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="neither a manifest"):
        newest_batch(str(tmp_path))
    for name in ("2026-01-01", "2026-02-01"):
        (tmp_path / name / "manifest.jsonl").write_text("{}\n", encoding="utf-8")
    assert newest_batch(str(tmp_path)) == str(tmp_path / "2026-02-01")
    assert newest_batch(str(tmp_path / "2026-01-01")) == str(tmp_path / "2026-01-01")
    assert newest_batch("s3://bucket/batch") == "s3://bucket/batch"
