"""Validation during training: on rows that no step trains on, without a trace in the training, exact after a stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from hardcase.config import GrpoConfig, LoraConfig, SftConfig, load_profile
from hardcase.data.cases import MinedCase, judge, read_cases
from hardcase.data.completions import Completion
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.grpo import train_grpo
from hardcase.model.sft import fine_tune
from hardcase.model.training import find_last_checkpoint
from hardcase.steps.grpo import run as grpo_step
from hardcase.steps.ingest import run as ingest
from hardcase.steps.mine import run as mine
from hardcase.steps.rollout import run as rollout
from hardcase.steps.sft import run as sft_step
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
COMMON: dict[str, Any] = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "threads": 1, "save_steps": 2}
Result = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def by_length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(completion[0]["content"]) % 3) for completion in completions]


def unsolved(samples: list[Sample]) -> list[MinedCase]:
    return [judge(sample.id, sample.truth, [*map(Completion, ("", ""))], 0.5) for sample in samples]


@pytest.fixture
def grpo(fresh_model: Build, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Trains on eight samples, and validates on the last four."""
    monkeypatch.setattr("hardcase.model.grpo.dpa_reward", by_length)

    def run(folder: Path, **settings: Any) -> Result:
        folder.mkdir(exist_ok=True)
        model, processor = fresh_model()
        config = GrpoConfig(**{**COMMON, "generations": 4, "max_new_tokens": 6, **settings})
        train, held_out = samples[:8], samples[8:]
        log = train_grpo(model, processor, train, unsolved(train), config, 0, folder, held_out=held_out)
        return {name: weight.clone() for name, weight in model.state_dict().items()}, log

    return run


@pytest.fixture
def sft(fresh_model: Build, samples: list[Sample]) -> Callable[..., Result]:
    def run(folder: Path, **settings: Any) -> Result:
        folder.mkdir(exist_ok=True)
        model, processor = fresh_model()
        config = SftConfig(**{**COMMON, "batch_size": 4, "hold_out": 0.3, **settings})
        log = fine_tune(model, processor, samples[:8], config, 0, folder, held_out=samples[8:])
        return {name: weight.clone() for name, weight in model.state_dict().items()}, log

    return run


def scores(monkeypatch: pytest.MonkeyPatch, results: dict[int, float]) -> None:
    """Let GRPO's validation find these shares, by step."""

    def measure(trainer: Any, *_: Any) -> dict[str, float]:
        return {"eval_exact_match": results[trainer.state.global_step]}

    monkeypatch.setattr("hardcase.model.grpo.measure_exact_match", measure)


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class Stop(TrainerCallback):
    """Ends a training as a kill does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    import hardcase.model.grpo as module

    stock = module.train

    def train(trainer: Any, *arguments: Any, **options: Any) -> Any:
        trainer.add_callback(Stop(step))
        return stock(trainer, *arguments, **options)

    monkeypatch.setattr(module, "train", train)


@pytest.mark.parametrize(("step", "metric"), [("sft", "eval_loss"), ("grpo", "eval_exact_match")])
def test_results_are_logged_and_the_training_is_the_same_as_without(
    step: str, metric: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    train = request.getfixturevalue(step)
    settings = {"lora": LoraConfig(rank=4, alpha=8, dropout=0.3), "workers": 1}
    plain, log = train(tmp_path / "plain", **settings)
    validated, with_results = train(tmp_path / "validated", validate_steps=2, **settings)
    assert_equal(plain, validated)
    results = [entry for entry in with_results if metric in entry]
    assert [entry["step"] for entry in results] == [2, 4, 6]
    assert [entry for entry in with_results if metric not in entry] == log
    assert all({"phase", "step", "epoch", metric} <= entry.keys() for entry in results)
    assert not {name for entry in results for name in entry if "second" in name or "runtime" in name}


def test_the_last_step_is_validated_too(sft: Any, tmp_path: Path) -> None:
    _, log = sft(tmp_path, validate_steps=4)
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 6]


def test_loss_falls_on_rows_that_are_like_those_trained_on(sft: Any, tmp_path: Path) -> None:
    _, log = sft(tmp_path, validate_steps=1, steps=8)
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses[-1] < losses[0]


def test_sft_answers_too_where_it_is_asked_to(sft: Any, tmp_path: Path) -> None:
    plain, _ = sft(tmp_path / "plain")
    answered, log = sft(tmp_path / "answered", validate_steps=3, validate_tokens=8)
    assert_equal(plain, answered)
    for metric in ("eval_loss", "eval_exact_match"):
        assert [entry["step"] for entry in log if metric in entry] == [3, 6]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "adapters"])
def test_the_best_weights_are_returned_where_they_are_asked_for(
    grpo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None
) -> None:
    scores(monkeypatch, {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.1, 5: 0.1, 6: 0.5})
    short, _ = grpo(tmp_path / "short", validate_steps=1, lora=lora, steps=2, trl={"lr_scheduler_type": "constant"})
    settings: dict[str, Any] = {"validate_steps": 1, "lora": lora, "trl": {"lr_scheduler_type": "constant"}}
    best, _ = grpo(tmp_path / "best", keep="best", **settings)
    last, _ = grpo(tmp_path / "last", **settings)
    assert_equal(best, short)
    assert any(not torch.equal(best[name], last[name]) for name in best)
    files = list((tmp_path / "best").glob("best-*"))
    assert [file.name for file in files] == ["best-2.safetensors"], "the others are removed"
    assert not list((tmp_path / "last").glob("best-*"))
    assert len(load_file(files[0])) < len(best) or lora is None


def test_training_stops_when_it_no_longer_improves_also_after_a_kill(
    grpo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.5, 5: 0.9, 6: 0.9})
    settings = {"validate_steps": 1, "patience": 2, "keep": "best"}
    whole, log = grpo(tmp_path / "whole", **settings)
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    for step in (3, 4):  # the checkpoint of step 4 is that of a training that has stopped
        with monkeypatch.context() as context:
            stop_at(context, step)
            try:
                grpo(tmp_path / "stopped", **settings)
            except KeyboardInterrupt:
                assert step == 3
    again, again_log = grpo(tmp_path / "stopped", **settings)
    assert_equal(whole, again)
    assert log == again_log


def test_a_killed_training_validates_on_as_if_nothing_had_happened(
    grpo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {2: 0.3, 3: 0.8, 4: 0.1, 6: 0.2, 1: 0.1, 5: 0.1})
    settings = {"validate_steps": 1, "keep": "best", "save_steps": 4}
    whole, log = grpo(tmp_path / "whole", **settings)
    with monkeypatch.context() as context:
        stop_at(context, 5)
        with pytest.raises(KeyboardInterrupt):
            grpo(tmp_path / "stopped", **settings)
    checkpoint = find_last_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None and checkpoint.name == "checkpoint-4"
    resumed, resumed_log = grpo(tmp_path / "stopped", **settings)
    assert_equal(whole, resumed)
    assert log == resumed_log


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grpo.keep": "best"}, "keep, patience and validate_tokens need validate_steps; set it"),
        ({"sft.patience": 2}, "keep, patience and validate_tokens need validate_steps; set it"),
        ({"sft.validate_tokens": 8}, "keep, patience and validate_tokens need validate_steps; set it"),
        ({"grpo.validate_steps": 2}, "validate_steps needs held-out rows; set sft.hold_out"),
        ({"sft.validate_steps": 2}, "validate_steps needs held-out rows; set sft.hold_out"),
        ({"sft.hold_out": 1.0}, "less than 1"),
        ({"sft.validate_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_validation_that_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_profile("smoke", settings)
    assert words in str(refusal.value)


def test_no_step_sees_the_held_out_groups_and_mined_cases_of_another_share_are_refused(tmp_path: Path) -> None:
    profile = load_profile("smoke", {"sft.hold_out": 0.3, "sft.validate_steps": 6, "grpo.validate_steps": 3})
    (tmp_path / "scratch").mkdir()
    data = tmp_path / "snapshot", (tmp_path / "store").as_uri()
    ingest("procedural://?samples=80&seed=7", data[1], profile.ingest, data[0], tmp_path / "bad", tmp_path / "scratch")
    train, held_out = Snapshot.open(*data).open_samples("train").hold_out(0.3)
    assert len(held_out) > 2
    assert not set(train.read_column("group")) & set(held_out.read_column("group"))
    model, mined = tmp_path / "sft", tmp_path / "mined"
    sft_step(*data, profile.model, profile.sft, 0, tmp_path / "s", model, tmp_path / "log")
    rollout(*data, model, profile.mine, 0, "1/1", tmp_path / "m", tmp_path / "rollouts", 0.3)
    mine(*data, tmp_path / "rollouts", profile.mine, mined, 0.3)
    assert [case.id for case in read_cases(mined)] == train.read_column("id")
    places = tmp_path / "g", tmp_path / "model", tmp_path / "grpo.log"
    grpo_step(*data, model, mined, profile.grpo, 0, *places, hold_out=0.3)
    log = [json.loads(line) for line in places[2].read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_exact_match" in entry] == [3, 6]
    with pytest.raises(InputError, match="its ids are not the training split's; mine this snapshot again"):
        grpo_step(*data, model, mined, profile.grpo, 0, *places, hold_out=0.1)
    with pytest.raises(InputError, match=r"no group is held out, which GRPO validates on; raise sft\.hold_out"):
        grpo_step(*data, model, mined, profile.grpo, 0, *places, hold_out=1e-9)
