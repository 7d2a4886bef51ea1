"""A training step in two processes, as a user gets it by `processes: 2`: DeepSpeed, checkpoints, resume, errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.grpo.step import run
from components.ingest.step import run as ingest
from components.launching import in_processes
from components.sft.step import run as sft
from hardcase.config import GrpoConfig, IngestConfig, ModelConfig, SftConfig, TinyModelConfig
from hardcase.data.cases import judge, write_cases
from hardcase.data.snapshot import Snapshot
from hardcase.errors import HardcaseError, InputError
from hardcase.model.internvl import build_tiny, load_model, save_model
from hardcase.model.sft import fine_tune, known_texts
from hardcase.task.prompt import completion
from tests.components import leaving

SMALL = TinyModelConfig(image_size=32, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
CONFIG: dict[str, Any] = {
    "steps": 3,
    "batch_size": 8,
    "generations": 4,
    "learning_rate": 1e-2,
    "save_steps": 1,
    "max_new_tokens": 40,
    "threads": 1,
    "rounds": 2,
    "hard_share": 0.3,
    "beta": 0.1,
    "processes": 2,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the step takes: a snapshot, a model that gives answers if not yet the right ones, half-solved cases."""
    folder = tmp_path_factory.mktemp("given")
    store = (folder / "store").as_uri()
    places = folder / "snapshot", folder / "quarantine", folder / "scratch"
    places[2].mkdir()
    ingest("procedural://?samples=24&seed=3", store, IngestConfig(eval_share=0.2), *places)
    samples = Snapshot.open(places[0], store).load("train")
    model, processor = build_tiny(SMALL, known_texts(samples, warm_up=True), 0)
    learning = SftConfig(steps=150, batch_size=8, learning_rate=5e-3, threads=1, save_steps=150)
    fine_tune(model, processor, samples, learning, 0, folder / "sft")
    save_model(model, processor, folder / "model")
    texts = {sample.id: [completion("x", sample.truth), ""] for sample in samples}
    write_cases([judge(sample.id, sample.truth, texts[sample.id], 0.6) for sample in samples], folder / "mined")
    return {"snapshot": places[0], "store": store, "model": folder / "model", "mined": folder / "mined", "seed": 0}


def train(given: dict[str, Any], folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    config = GrpoConfig.model_validate(CONFIG | changes)
    in_processes(run, config, folder / "scratch", **given, model_out=folder / "model", log=folder / "log")
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("zero", "lora"), [(2, {"rank": 4, "alpha": 8}), (3, None)], ids=["zero2-lora", "zero3-full"])
def test_two_processes_train_under_zero_and_save_safetensors(
    given: dict[str, Any], tmp_path: Path, zero: int, lora: dict[str, int] | None
) -> None:
    after = train(given, tmp_path, zero=zero, lora=lora)
    before = load_file(given["model"] / "model.safetensors")
    assert after.keys() == before.keys()
    assert any(not after[name].equal(before[name]) for name in before)
    load_model(tmp_path / "model")
    checkpoint = tmp_path / "scratch" / "checkpoint-3"
    assert json.loads((checkpoint / "complete").read_text())["world_size"] == 2
    parts = {path.name for path in checkpoint.rglob("*optim_states.pt")}
    assert len(parts) == 2, "DeepSpeed keeps a part of the optimiser in each process"
    assert (tmp_path / "scratch" / "mined-1.parquet").is_file()
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [entry["epoch"] > 0 for entry in log] == [True] * 3
    assert max(entry["reward_std"] for entry in log) > 0


def test_two_processes_go_on_from_their_checkpoint_to_the_same_bytes_and_one_process_does_not(
    given: dict[str, Any], tmp_path: Path
) -> None:
    whole = train(given, tmp_path, zero=2)
    shutil.rmtree(tmp_path / "scratch" / "checkpoint-3")
    resumed = train(given, tmp_path, zero=2)
    assert all(resumed[name].equal(whole[name]) for name in whole)
    with pytest.raises(InputError, match="made with world_size 2, now 1; set it back to go on"):
        train(given, tmp_path, zero=2, processes=1)


def test_a_gradient_that_is_not_finite_stops_deepspeed_before_the_update(given: dict[str, Any], tmp_path: Path) -> None:
    config = SftConfig(steps=3, batch_size=4, learning_rate=1e38, save_steps=1, threads=1, processes=2, zero=2)
    places = {"model_out": tmp_path / "model", "log": tmp_path / "log"}
    arguments = {name: given[name] for name in ("snapshot", "store", "seed")}
    start = ModelConfig(checkpoint=str(given["model"]))
    with pytest.raises(HardcaseError, match="sft: the gradient of step 2 is not finite, so nothing was updated"):
        in_processes(sft, config, tmp_path, **arguments, model=start, **places)
    assert not (tmp_path / "model").exists()


def test_an_abort_counts_before_the_work_is_done_and_not_at_the_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = GrpoConfig.model_validate(CONFIG | {"zero": 2})
    in_processes(leaving.run, config, tmp_path, after_work=True)
    assert "all work was done, but a training process ended with" in caplog.text
    with pytest.raises(HardcaseError, match="a training process ended with 1; its last lines"):
        in_processes(leaving.run, config, tmp_path, after_work=False)
