import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.register import registry as module
from components.register.registry import Pin
from hardcase.config import RegisterConfig
from hardcase.data.digest import path_digest
from hardcase.errors import InputError

NAME = RegisterConfig().name


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


class Mortal:
    """MLflow's client, killed before or after one of its calls that write: at every state there can be."""

    def __init__(self, client: Any, deadline: list[int]) -> None:
        self.client, self.deadline = client, deadline

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name.startswith("search_"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count()
            found = method(*args, **kwargs)
            self.count()
            return found

        return call

    def count(self) -> None:
        self.deadline[0] -= 1
        if self.deadline[0] == 0:
            raise KilledError


def test_first_model_becomes_champion(house: Any, evaluated: Any) -> None:
    found = house.launch("a", evaluated())
    model, table = house.root / "run1" / "model", house.root / "run1" / "evaluation.parquet"
    assert found == {
        "verdict": "promoted",
        "reasons": found["reasons"],
        "name": NAME,
        "version": 1,
        "alias": "champion",
        "digest": path_digest(model),
        "against": None,
        "differences": None,
    }
    aliases, tags = house.state()
    assert aliases == {"champion": 1}
    assert tags[1] == {
        "digest": path_digest(model),
        "evaluation": path_digest(table),
        "fingerprint": "a",
        "reference": "",
        "reference_evaluation": "",
        "verdict": "promoted",
        "reasons": json.dumps(found["reasons"]),
    }
    source = house.registry._client.get_model_version(NAME, "1").source
    assert source == f"{(house.root / 'store').as_uri()}#{path_digest(model)}"


def test_better_model_replaces_the_champion(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated(0.7))
    found = house.launch("b", evaluated(0.8))
    assert (found["verdict"], found["version"], found["against"]) == ("promoted", 2, 1)
    assert found["differences"]["overall"]["low"] > 0
    aliases, tags = house.state()
    assert aliases == {"champion": 2}
    assert (tags[2]["reference"], tags[2]["reference_evaluation"]) == ("1", tags[1]["evaluation"])


def test_worse_model_is_kept_as_challenger_with_the_reasons(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated(0.7))
    found = house.launch("b", evaluated(0.5))
    assert (found["verdict"], found["alias"], found["version"]) == ("held", "challenger", 2)
    aliases, tags = house.state()
    assert aliases == {"champion": 1, "challenger": 2}
    assert json.loads(tags[2]["reasons"]) == found["reasons"]
    assert "significantly worse" in found["reasons"][0]


def test_scores_that_are_not_finite_never_reach_champion(house: Any, evaluated: Any) -> None:
    found = house.launch("a", evaluated(), scores={"grpo": {"overall": float("nan"), "exact_match": 0.5}})
    assert found["reasons"] == ["scores: grpo.overall is nan, not finite"]
    assert house.state()[0] == {"challenger": 1}


def test_same_run_again_changes_nothing(house: Any, evaluated: Any) -> None:
    for fingerprint, exact in (("a", 0.7), ("b", 0.5), ("c", 0.8)):
        house.launch(fingerprint, evaluated(exact))
        first, state = house.written(), house.state()
        house.launch(fingerprint, evaluated(exact))
        assert house.written() == first
        assert house.state() == state


def test_old_model_judged_against_a_new_champion_is_a_new_version(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated(0.7))
    house.launch("b", evaluated(0.8))
    found = house.launch("a", evaluated(0.7))
    assert (found["verdict"], found["version"], found["against"]) == ("held", 3, 2)
    aliases, tags = house.state()
    assert aliases == {"champion": 2, "challenger": 3}
    assert tags[1]["verdict"] == "promoted"


def test_champion_is_no_longer_challenger(house: Any, evaluated: Any) -> None:
    house.launch("a", evaluated())
    house.registry._client.set_registered_model_alias(NAME, "challenger", "1")
    house.launch("a", evaluated())
    assert house.state()[0] == {"champion": 1}


@pytest.mark.parametrize(("before", "exact"), [([], 0.8), ([("a", 0.7), ("b", 0.5)], 0.9)])
def test_killed_at_any_writing_call_the_next_run_comes_to_the_same(
    house: Any, evaluated: Any, monkeypatch: pytest.MonkeyPatch, before: list[tuple[str, float]], exact: float
) -> None:
    for fingerprint, share in before:
        house.launch(fingerprint, evaluated(share))
    start = house.root / "start.db"
    shutil.copyfile(house.root / "mlflow.db", start)
    table, clean = evaluated(exact), module._mlflow_client
    house.launch("n", table)
    expected, state = house.written(), house.state()
    for calls in range(1, 100):
        # MLflow keeps connections by path: a new house for each.
        place = type(house)(house.root / f"killed{calls}")
        place.root.mkdir()
        shutil.copytree(house.root / "store", place.root / "store")
        shutil.copyfile(start, place.root / "mlflow.db")
        pin = place.registry.pin(NAME, "n")
        deadline = [calls]
        monkeypatch.setattr(module, "_mlflow_client", lambda path, left=deadline: Mortal(clean(path), left))
        try:
            place.launch("n", table, pin=pin)
        except KilledError:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(module, "_mlflow_client", clean)
        assert not (place.root / "run1" / "register.json").exists()
        assert place.registry.pin(NAME, "n") == pin
        place.launch("n", table)
        assert place.written() == expected
        assert place.state() == state
    assert calls == (5 if before else 7)


def test_first_run_of_all_is_quiet_light_and_leaves_nothing_behind(house: Any, evaluated: Any, tmp_path: Path) -> None:
    house.launch("a", evaluated())
    expected, run = house.written(), house.root / "run1"
    pq.write_table(evaluated(), tmp_path / "evaluation.parquet")
    fresh, cwd = tmp_path / "fresh", tmp_path / "elsewhere"
    cwd.mkdir()
    fresh.mkdir()
    # What a process killed amid MLflow's migration leaves.
    (fresh / ".mlflow.db.draft").write_bytes((house.root / "mlflow.db").read_bytes()[:8192])
    code = f"""
import sys
from pathlib import Path
from components.register.step import run
assert not {{"mlflow", "torch", "pandas"}} & set(sys.modules)
from hardcase.config import RegisterConfig
run = run(*(Path("{run}", name) for name in ("model", "evaluation.parquet", "scores.json", "drift.json")), "",
    "{fresh / "store"}", "sqlite:///{fresh / "mlflow.db"}", RegisterConfig(), "a", 0, Path("{fresh / "register.json"}"))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    root = str(Path(module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (fresh / "register.json").read_bytes() == expected
    assert sorted(path.name for path in fresh.iterdir()) == ["mlflow.db", "register.json", "store"]
    assert list(cwd.iterdir()) == list(Path.cwd().iterdir()) == []


def test_our_own_log_survives_mlflow(house: Any, evaluated: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        house.launch("a", evaluated())
        logging.getLogger("components.register").info("still heard")
    heard = [record.message for record in caplog.records if record.name != "hardcase.progress"]
    assert heard == ["still heard"]


@pytest.mark.parametrize(("name", "text"), [("scores.json", "{"), ("drift.json", "[]"), ("evaluation.parquet", "PAR1")])
def test_file_of_another_format_is_the_users_error(
    house: Any, evaluated: Any, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    def damaged(model: Path, *arguments: Any) -> None:
        (model.parent / name).write_text(text)
        step.run(model, *arguments)

    from components.register import step

    monkeypatch.setitem(type(house).launch.__globals__, "run", damaged)
    with pytest.raises(InputError, match=name):
        house.launch("a", evaluated(), pin=Pin())
    assert house.state() == ({}, {})
