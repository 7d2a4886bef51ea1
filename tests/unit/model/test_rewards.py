"""Reward functions of the user: which are refused before a run, which end a training, and how the others count."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import GrpoConfig, load_profile
from hardcase.data.cases import judge
from hardcase.data.completions import Completion
from hardcase.errors import HardcaseError, InputError
from hardcase.model.grpo import train_grpo
from hardcase.model.rewards import read_reward_files
from hardcase.provenance.signing import SIGNING_FILE, make_key
from hardcase.steps.configure import PARAMETERS, pin_run, plan_retraining
from hardcase.store.store import open_store
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
BREVITY = """
import json

def brevity(completions, aspect, **columns):
    return [len(turns[0]["content"]) % 3 for turns in completions]

def rambling(completions, **columns):
    return [None for _ in completions]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "brevity.py").write_text(BREVITY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(build: Build, samples: list[Sample], folder: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    model, processor = build()
    cases = [judge(sample.id, sample.truth, [*map(Completion, ("", ""))], 0.5) for sample in samples]
    common: dict[str, Any] = {"steps": 2, "batch_size": 8, "generations": 4, "max_new_tokens": 6, "threads": 1}
    config = GrpoConfig(**common, learning_rate=1e-2, **settings)
    log = train_grpo(model, processor, samples, cases, config, 0, folder / "scratch", folder / "rewards")
    return model.state_dict(), log


def test_functions_train_with_their_weights_and_are_logged(
    fresh_model: Build, samples: list[Sample], folder: Path
) -> None:
    rewards = {"rewards/brevity.py:brevity": 0.5, "rewards/brevity.py:rambling": 9.0}
    weights, log = train(fresh_model, samples, folder, rewards=rewards)
    start = fresh_model()[0].state_dict()
    assert any(not torch.equal(weights[name], start[name]) for name in start), "random texts earn no other reward"
    for entry in log:
        assert 0 < entry["rewards/brevity/mean"] < 2
        assert "rewards/rambling/mean" not in entry, "a function may not apply"
        assert entry["reward"] == pytest.approx(0.5 * entry["rewards/brevity/mean"] + entry["rewards/dpa_reward/mean"])


def test_the_order_of_functions_does_not_depend_on_where_they_are(
    fresh_model: Build, samples: list[Sample], folder: Path
) -> None:
    """A replay executes the stored copies."""
    results = [
        train(fresh_model, samples, folder, rewards={f"{place}brevity.py:brevity": 0.3, "m/brevity.py:rambling": 0.1})
        for place in ("z/", "/a/")
    ]
    assert results[0][1] == results[1][1]
    assert all(torch.equal(weight, results[1][0][name]) for name, weight in results[0][0].items())


def test_a_changed_file_changes_the_work_of_grpo_and_of_nothing_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(folder / "keys")
    monkeypatch.setenv("HARDCASE_SIGNING_KEY", str(folder / "keys" / SIGNING_FILE))
    store, locations = open_store((folder / "store").as_uri()), {"store": "", "scratch": "", "tracking_uri": ""}
    profile = load_profile("smoke", {"grpo.rewards": {"rewards/brevity.py:brevity": 0.5}})
    before = pin_run(profile, store.uri)
    (folder / "rewards" / "brevity.py").write_text(BREVITY + "# shorter\n")
    after = pin_run(profile, store.uri)
    assert before["fingerprint"] != after["fingerprint"]
    plans = [plan_retraining(profile, pinned, locations) for pinned in (before, after)]
    changed = {step for step in PARAMETERS if plans[0][step]["parameters"] != plans[1][step]["parameters"]}
    assert changed == {"grpo", "register"}
    store.get_folder(after["reward_files"], folder / "stored")
    assert (folder / "stored" / "brevity.py").read_text() == BREVITY + "# shorter\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def brevity(completions, **_):\n    return 1 / 0", "ZeroDivisionError: division by zero; correct"),
        ("def brevity(completions, **_):\n    return [1]", "1 rewards for 8 completions; return one for each"),
        ("def brevity(completions, **_):\n    return [float('nan')] * 8", "nan is no finite reward"),
        ("def brevity(completions, **_):\n    return ['much'] * 8", "ValueError: could not convert string to float"),
        ("def brevity(completions):\n    return [1] * 8", "TypeError: brevity() got an unexpected keyword argument"),
        ("async def brevity(completions, **_):\n    return [1] * 8", "TypeError: 'coroutine' object is not iterable"),
        (
            "import nothing_of_the_kind\ndef brevity(**_): ...",
            "cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("brevity = 3", "is not a function"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine 'brevity' was never awaited")
def test_a_function_that_fails_ends_the_training_in_one_line(
    fresh_model: Build, samples: list[Sample], folder: Path, content: str, words: str
) -> None:
    (folder / "rewards" / "brevity.py").write_text(content)
    with pytest.raises(HardcaseError) as error:
        train(fresh_model, samples, folder, rewards={"rewards/brevity.py:brevity": 1.0})
    assert str(error.value).startswith("grpo.rewards rewards/brevity.py:brevity: ")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rewards/gone.py:brevity", "rewards/gone.py is no readable Python file: [Errno 2] No such file"),
        ("rewards/brevity.py:levity", "rewards/brevity.py defines no levity; correct the name"),
        ("rewards/brevity.py:len", "defines no len"),
        ("rewards/broken.py:brevity", "is no readable Python file: '(' was never closed"),
        ("brevity:brevity", "no module brevity is installed; name a file of the working directory as brevity.py"),
        ("sys:exit", "no module sys is installed"),
        ("other/brevity.py:rambling", "another file is called brevity.py too; rename one"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_the_run(folder: Path, name: str, words: str) -> None:
    (folder / "rewards" / "broken.py").write_text("def brevity(")
    (folder / "other").mkdir()
    (folder / "other" / "brevity.py").write_text("def rambling(**_): ...")
    (folder / "brevity.py").write_text(BREVITY)  # the working directory is no place of modules
    with pytest.raises(InputError) as refusal:
        read_reward_files(["rewards/brevity.py:brevity", name])
    assert str(refusal.value).startswith(f"grpo.rewards {name}: ")
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_installed_module_is_found_and_no_file_is_executed(folder: Path) -> None:
    (folder / "rewards" / "brevity.py").write_text("raise SystemExit\ndef brevity(**_): ...")
    files = read_reward_files(["rewards/brevity.py:brevity", "hardcase.task.reward:format_reward"])
    assert files["brevity.py"].startswith(b"raise SystemExit")
    assert b"def format_reward" in files["hardcase.task.reward.py"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grpo.rewards": {"brevity.py": 1}}, "'brevity.py' names no function; write path/file.py:function or"),
        ({"grpo.rewards": {"a.py:f": 1, "b.py:f": 1}}, "two reward functions are called f, as which they are logged"),
        ({"grpo.reward_weight": 0}, "no reward has a weight; set reward_weight"),
        ({"grpo.reward_weight": 0, "grpo.rewards": {"a.py:f": 0}}, "no reward has a weight"),
    ],
)
def test_names_and_weights_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_profile("smoke", settings)
    assert words in str(refusal.value)
