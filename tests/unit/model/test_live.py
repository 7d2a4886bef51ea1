"""Live metrics: what a user sees while a training runs, after a resume, and when the board fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from hardcase.config import GrpoConfig, SftConfig, TrainConfig, load_profile
from hardcase.config.base import Destination
from hardcase.data.cases import judge
from hardcase.data.completions import Completion
from hardcase.errors import HardcaseError, InputError
from hardcase.model.grpo import train_grpo
from hardcase.model.live import build_table
from hardcase.model.sft import fine_tune
from hardcase.provenance.signing import SIGNING_FILE, make_key
from hardcase.runtime import devices
from hardcase.runtime.running import open_destination
from hardcase.steps.configure import pin_run, plan_retraining
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
COMMON: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "threads": 1, "save_steps": 2}


def board(folder: Path, kind: Any = "tensorboard", run: str = "run-1") -> Destination:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return Destination(kind=kind, folder=folder / "metrics", tracking_uri=uri, run=run)


def grpo(build: Build, samples: list[Sample], scratch: Path, to: Destination | None) -> Any:
    model, processor = build()
    scratch.mkdir(exist_ok=True)
    cases = [judge(sample.id, sample.truth, [*map(Completion, ("", ""))], 0.5) for sample in samples]
    config = GrpoConfig(**COMMON, steps=5, generations=4, max_new_tokens=6)
    return train_grpo(model, processor, samples, cases, config, 0, scratch, to=to)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def steps_of(folder: Path, name: str) -> list[int]:
    return [event.step for event in read(folder).Scalars(name)]


class Look(TrainerCallback):
    """Reads the board in the middle of the training, and ends it there if it is asked to."""

    def __init__(self, folder: Path, stop: bool) -> None:
        self.folder, self.stop, self.seen = folder, stop, list[int]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            self.seen = steps_of(self.folder, "reward") if self.folder.exists() else []
            if self.stop:
                raise KeyboardInterrupt


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Look]:
    def look(folder: Path, stop: bool = False) -> Look:
        import hardcase.model.grpo as module

        own, stock = Look(folder, stop), module.train

        def train(trainer: Any, *arguments: Any) -> Any:
            trainer.add_callback(own)
            return stock(trainer, *arguments)

        monkeypatch.setattr(module, "train", train)
        return own

    return look


def test_metrics_and_completions_are_seen_while_the_training_runs_and_the_log_is_the_same_as_without(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, looking: Callable[..., Look]
) -> None:
    look = looking(tmp_path / "metrics" / "grpo")
    log = grpo(fresh_model, samples, tmp_path / "a", board(tmp_path))
    assert look.seen == [1, 2, 3]
    events = read(tmp_path / "metrics" / "grpo")
    assert steps_of(tmp_path / "metrics" / "grpo", "reward") == [1, 2, 3, 4, 5]
    assert {"loss", "grad_norm", "learning_rate", "frac_reward_zero_std"} <= set(events.Tags()["scalars"])
    (sample,) = events.Tensors("completions/text_summary")
    table = sample.tensor_proto.string_val[0].decode()
    assert table.startswith("| aspect | id | truth | dpa_reward | advantage | text |\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    truths = {sample.id: (sample.aspect, "".join(sorted(sample.truth)) or "none") for sample in samples}
    assert len(rows) == 2, "one completion of each prompt"
    assert all(truths[row[1]] == (row[0], row[2]) for row in rows)
    assert log == grpo(fresh_model, samples, tmp_path / "b", None)


def test_after_a_kill_a_new_run_shows_all_steps_and_the_same_run_each_once(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, looking: Callable[..., Look]
) -> None:
    look = looking(tmp_path / "metrics" / "grpo", stop=True)
    with pytest.raises(KeyboardInterrupt):
        grpo(fresh_model, samples, tmp_path / "scratch", board(tmp_path))
    assert look.seen == [1, 2, 3], "the step after the checkpoint of step 2 is shown too"
    look.stop = False
    grpo(fresh_model, samples, tmp_path / "scratch", board(tmp_path))
    assert steps_of(tmp_path / "metrics" / "grpo", "reward") == [1, 2, 3, 4, 5]
    other = tmp_path / "other"
    grpo(fresh_model, samples, tmp_path / "scratch", board(other))
    assert steps_of(other / "metrics" / "grpo", "reward") == [1, 2, 3, 4, 5], "it resumed at the end"


def test_each_phase_of_sft_has_curves_of_its_own(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    model, processor = fresh_model()
    warm_up = TrainConfig(**COMMON, steps=2)
    config = SftConfig(**COMMON, steps=3, warm_up=warm_up, reading=warm_up)
    fine_tune(model, processor, samples, config, 0, tmp_path / "scratch", to=board(tmp_path))
    lengths = {folder.name: len(steps_of(folder, "loss")) for folder in (tmp_path / "metrics").iterdir()}
    assert lengths == {"warmup": 2, "reading": 2, "sft": 3}


def test_mlflow_shows_one_run_for_a_phase_however_often_it_was_resumed(
    fresh_model: Build, samples: list[Sample], tmp_path: Path, looking: Callable[..., Look]
) -> None:
    look = looking(tmp_path / "none", stop=True)
    to = board(tmp_path, "mlflow")
    with pytest.raises(KeyboardInterrupt):
        grpo(fresh_model, samples, tmp_path / "scratch", to)
    look.stop = False
    grpo(fresh_model, samples, tmp_path / "scratch", to)
    client = MlflowClient(to.tracking_uri)
    experiment = client.get_experiment_by_name("hardcase training")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run-1/grpo", "FINISHED")
    assert {point.step for point in client.get_metric_history(run.info.run_id, "reward")} == {1, 2, 3, 4, 5}
    assert (tmp_path / "mlartifacts").is_dir(), "not in the working directory"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "completions")] == ["completions/000001.md"]


def test_a_board_that_cannot_be_opened_is_named_before_the_first_step(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "metrics").write_text("a file")
    with pytest.raises(HardcaseError, match=r"metrics tensorboard: .*; correct its settings, or set `metrics: none`"):
        grpo(fresh_model, samples, tmp_path / "scratch", board(tmp_path))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_board_that_fails_later_does_not_end_the_training(
    fresh_model: Build,
    samples: list[Sample],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_text", fail)
    assert len(grpo(fresh_model, samples, tmp_path / "scratch", board(tmp_path))) == 5
    assert [record.message for record in caplog.records if "metrics" in record.message] == [
        "metrics tensorboard: no space left; no more are shown of this training"
    ]


def test_text_of_a_completion_cannot_break_the_table() -> None:
    table = build_table([{"id": "a", "reward": 0.5, "text": "<think>x|y\nz</think>"}])
    assert table == "| id | reward | text |\n|---|---|---|\n| a | 0.5 | &lt;think>x\\|y z&lt;/think> |"


@pytest.mark.parametrize(
    ("installed", "variables", "words"),
    [
        (False, {}, "metrics is wandb, which is not installed; pip install wandb, or set it to none"),
        (True, {}, "metrics is wandb, and this machine is not logged in to api.wandb.ai: set WANDB_API_KEY"),
        (True, {"WANDB_BASE_URL": "https://w.example.com"}, "is not logged in to w.example.com"),
        (True, {"WANDB_API_KEY": "x"}, ""),
        (True, {"WANDB_MODE": "offline"}, ""),
    ],
)
def test_weights_and_biases_without_its_settings_is_refused_before_the_run(
    installed: bool, variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = devices.find_spec
    monkeypatch.setattr(devices, "find_spec", lambda name: installed if name == "wandb" else stock(name))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    profile = load_profile("smoke", {"metrics": "wandb"})
    if not words:
        devices.require_devices(profile)
        return
    with pytest.raises(InputError) as refusal:
        devices.require_devices(profile)
    assert words in str(refusal.value)


def test_a_login_to_weights_and_biases_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda _: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    devices.require_board("wandb")


def test_metrics_are_in_the_folder_of_the_run_or_on_the_scratch_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"metrics": "tensorboard", "scratch": "/scratch", "tracking_uri": ""}
    monkeypatch.setenv("HARDCASE_RUN", "run-1")
    monkeypatch.delenv("HARDCASE_HOME", raising=False)
    assert open_destination(plan).folder == Path("/scratch/metrics/run-1")
    monkeypatch.setenv("HARDCASE_HOME", str(tmp_path))
    assert open_destination(plan).folder == tmp_path / "runs" / "run-1" / "metrics"


def test_the_board_changes_neither_a_fingerprint_nor_what_a_step_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "keys")
    monkeypatch.setenv("HARDCASE_SIGNING_KEY", str(tmp_path / "keys" / SIGNING_FILE))
    pinned, plans = list[Any](), list[Any]()
    for kind in ("tensorboard", "none"):
        profile = load_profile("smoke", {"metrics": kind})
        pinned.append(pin_run(profile, (tmp_path / "store").as_uri()))
        plans.append(plan_retraining(profile, pinned[-1], {"store": "", "scratch": "", "tracking_uri": ""}))
    assert pinned[0] == pinned[1]
    assert [plan["sft"]["metrics"] for plan in plans] == ["tensorboard", "none"]
    assert plans[0]["sft"]["parameters"] == plans[1]["sft"]["parameters"]
    assert json.dumps(plans[0]["grpo"]["parameters"]) == json.dumps(plans[1]["grpo"]["parameters"])
