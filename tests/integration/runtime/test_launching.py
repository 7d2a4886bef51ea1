"""A step's work in several processes: training under DeepSpeed with its checkpoints, answers in shards."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hardcase.config import EvaluateConfig, GrpoConfig, IngestConfig, ModelConfig, SftConfig, TinyModelConfig
from hardcase.data.cases import judge, read_cases, write_cases
from hardcase.data.completions import Completion, merge_completions, read_completions
from hardcase.data.scenes import write_source
from hardcase.data.snapshot import Snapshot
from hardcase.errors import HardcaseError, InputError
from hardcase.model.internvl import build_tiny, load_model, save_model
from hardcase.model.sft import collect_vocabulary_texts, fine_tune
from hardcase.model.training import find_last_checkpoint
from hardcase.runtime.nodes import LOOPBACK
from hardcase.runtime.processes import COMMAND, in_processes, in_shards
from hardcase.steps.answer import run as answer
from hardcase.steps.grpo import run
from hardcase.steps.ingest import run as ingest
from hardcase.steps.sft import run as sft
from hardcase.task.prompt import format_completion
from tests.support import balancing, leaving, sharing

pytestmark = pytest.mark.usefixtures("hostile_folder")
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
    samples = Snapshot.open(places[0], store).open_samples("train", reasoning=True)
    model, processor = build_tiny(SMALL, collect_vocabulary_texts(samples, warm_up=True), 0)
    learning = SftConfig(steps=150, batch_size=8, learning_rate=5e-3, threads=1, save_steps=150)
    fine_tune(model, processor, samples, learning, 0, folder / "sft")
    save_model(model, processor, folder / "model")
    texts = {sample.id: [format_completion("x", sample.truth), ""] for sample in samples}
    write_cases(
        [judge(sample.id, sample.truth, [*map(Completion, texts[sample.id])], 0.6) for sample in samples],
        folder / "mined",
    )
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
    samples, _ = Snapshot.open(given["snapshot"], given["store"]).open_samples("train").hold_out(0.3)
    ids = samples.read_column("id")
    write_cases([case for case in read_cases(given["mined"]) if case.id in ids], tmp_path / "mined")
    given = {**given, "mined": tmp_path / "mined", "hold_out": 0.3}
    after = train(given, tmp_path, zero=zero, lora=lora, validate_steps=1, keep="best")
    before = load_file(given["model"] / "model.safetensors")
    assert after.keys() == before.keys()
    assert any(not after[name].equal(before[name]) for name in before)
    weights = dict(load_model(tmp_path / "model", dtype="float32")[0].named_parameters())
    checkpoint = tmp_path / "scratch" / "checkpoint-3"
    assert json.loads((checkpoint / "complete").read_text())["world_size"] == 2
    parts = {path.name for path in checkpoint.rglob("*optim_states.pt")}
    assert len(parts) == 2, "DeepSpeed keeps a part of the optimiser in each process"
    assert (tmp_path / "scratch" / "mined-1.parquet").is_file()
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [entry["epoch"] > 0 for entry in log if "loss" in entry] == [True] * 3
    assert max(entry.get("reward_std", 0) for entry in log) > 0
    results = {entry["step"]: entry["eval_exact_match"] for entry in log if "eval_exact_match" in entry}
    assert list(results) == [1, 2, 3]
    best = max(results, key=lambda step: results[step])
    stored = load_file(tmp_path / "scratch" / f"best-{best}.safetensors")
    assert lora or all(weights[name].equal(stored[name]) for name in stored)


def test_two_processes_told_to_end_resume_to_the_same_bytes_and_one_process_does_not(
    given: dict[str, Any], tmp_path: Path, unused_port: int
) -> None:
    settings = {"zero": 2, "steps": 8, "save_steps": 2}
    whole, folder = train(given, tmp_path / "whole", **settings), tmp_path / "stopped"
    scratch = folder / "scratch"

    def terminate(process: int, step: int) -> None:
        while not (scratch / f"checkpoint-{step}" / "complete").exists():
            time.sleep(0.01)
        os.kill(process, signal.SIGTERM)

    threading.Thread(target=terminate, args=(os.getpid(), 2), daemon=True).start()
    with pytest.raises(SystemExit) as end:
        train(given, folder, **settings)
    assert end.value.code == 143
    assert find_last_checkpoint(scratch) != scratch / "checkpoint-2", "the step at work is saved"
    with pytest.raises(InputError, match="written with world_size 2, now 1; restore that to resume"):
        train(given, folder, **settings, processes=1)
    # The same work as a node of a TrainJob, of which Kubernetes tells its first process.
    job = (scratch / "job.json").read_text().replace('"processes": 1', '"processes": 2')
    (scratch / "job.json").write_text(job)
    place = {"NODE_RANK": "0", "NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port)}
    environment = {**os.environ, **LOOPBACK, **{f"PET_{name}": value for name, value in place.items()}}
    node = subprocess.Popen([*COMMAND, str(scratch / "job.json"), "node"], env=environment)
    terminate(node.pid, 4)
    assert node.wait(60) == 143
    assert find_last_checkpoint(scratch) != scratch / "checkpoint-4"
    assert not (folder / "model").exists()
    resumed = train(given, folder, **settings)
    assert all(resumed[name].equal(whole[name]) for name in whole)


def test_a_process_that_dies_is_no_training_told_to_end(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "dying.py").write_text(
        "import os, time\n"
        "def dying(completions, trainer_state, **columns):\n"
        "    if trainer_state.global_step == 1:\n"
        "        os._exit(9) if os.environ['RANK'] == '1' else time.sleep(5)\n"
        "    return [0.0] * len(completions)\n"
    )
    files = {"reward_files": tmp_path / "rewards"}
    with pytest.raises(HardcaseError, match="a process ended with 1; its last lines"):
        train({**given, **files}, tmp_path, zero=2, rewards={"dying.py:dying": 1.0})
    assert not (tmp_path / "scratch" / "stop").exists()


def test_processes_share_what_one_of_them_has_to_learn_from(given: dict[str, Any], tmp_path: Path) -> None:
    weights, seen = {}, {}
    for balanced in (True, False):
        (tmp_path / str(balanced)).mkdir()
        arguments = {name: given[name] for name in ("snapshot", "store", "model")}
        out, config = tmp_path / f"out-{balanced}", GrpoConfig.model_validate(CONFIG)
        in_processes(balancing.run, config, tmp_path / str(balanced), **arguments, out=out, balanced=balanced)
        weights[balanced] = load_file(out / "model.safetensors")
        seen[balanced] = [json.loads((out / f"seen-{process}.json").read_text()) for process in range(2)]
    assert seen[False] == [[20, 10, 10] * 2] * 2, "four prompts a process, two a pass"
    assert seen[True] == [[20, 5, 5] * 2] * 2, "of the four prompts to learn from, two for each process"
    for name, weight in weights[True].items():
        torch.testing.assert_close(weight, weights[False][name], rtol=0, atol=1e-6, msg=name)
    before = load_file(given["model"] / "model.safetensors")
    assert any(not weight.equal(before[name]) for name, weight in weights[True].items())


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
    assert "all work was done, but a process ended with" in caplog.text
    with pytest.raises(HardcaseError, match="a process ended with 1; its last lines"):
        in_processes(leaving.run, config, tmp_path, after_work=False)


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Any]:
    """What a work in shards takes."""
    common = {"config": EvaluateConfig(engine="transformers"), "refused": tmp_path / "refused"}
    return {"work": sharing.run, "scratch": tmp_path / "scratch", "written": "answers", **common}


def attempts(shared: dict[str, Any], shards: int) -> list[list[int]]:
    folders = [shared["scratch"] / f"shard-{number}-of-{shards}" for number in range(1, shards + 1)]
    return [[int(line) for line in (folder / "attempts").read_text().split()] for folder in folders]


def test_answers_of_several_shards_are_those_of_one_byte_for_byte(given: dict[str, Any], tmp_path: Path) -> None:
    config = EvaluateConfig(engine="transformers", batch_size=1, max_new_tokens=20, threads=1)
    arguments = {name: given[name] for name in ("snapshot", "store", "model", "seed")}
    for shards in (1, 3):
        tables = in_shards(answer, shards, 1, tmp_path / "scratch", "answers", **arguments, config=config)
        assert len(tables) == shards
        merge_completions(tables, tmp_path / f"{shards}.parquet")
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "3.parquet").read_bytes()
    ids = [row["id"] for row in Snapshot.open(given["snapshot"], given["store"]).read_labels("eval")]
    assert len(read_completions([tmp_path / "3.parquet"], ids)) == len(ids) > 3


def test_first_shard_that_fails_ends_the_others_and_only_what_is_left_is_done_again(
    shared: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "refused").write_text("2/3")
    with pytest.raises(InputError, match="shard 2/3 is refused"):
        in_shards(shards=3, nodes=1, **shared)
    before = attempts(shared, 3)
    assert [len(pids) for pids in before] == [1, 1, 1]
    assert not any(Path("/proc", str(pid)).exists() for pids in before for pid in pids)
    (tmp_path / "refused").unlink()
    tables = in_shards(shards=3, nodes=1, **shared)
    assert [len(pids) for pids in attempts(shared, 3)] == [1, 2, 2]
    assert read_completions(tables, ["1/3", "2/3", "3/3"]) == [[Completion("")]] * 3


def test_shards_of_another_division_count_for_nothing(shared: dict[str, Any]) -> None:
    in_shards(shards=2, nodes=1, **shared)
    tables = in_shards(shards=3, nodes=1, **shared)
    assert read_completions(tables, ["1/3", "2/3", "3/3"]) == [[Completion("")]] * 3


def test_shard_that_breaks_without_a_word_is_told(shared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scratch" / "shard-2-of-2" / "written").mkdir(parents=True)
    with pytest.raises(HardcaseError, match="a process ended with 1; its last lines"):
        in_shards(shards=2, nodes=1, **shared)


@pytest.mark.parametrize(("visible", "gpus"), [(None, ["0", "1"]), ("4,GPU-6", ["4", "GPU-6"])])
def test_each_gpu_of_a_machine_has_a_shard_without_any_setting(
    shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    tables = in_shards(shards=1, nodes=1, **shared)
    assert read_completions(tables, ["1/2", "2/2"]) == [[Completion(gpu)] for gpu in gpus]


def test_a_source_in_shards_is_the_same_snapshot(tmp_path: Path) -> None:
    write_source(tmp_path / "source", samples=70, seed=9)
    with (tmp_path / "source" / "manifest.jsonl").open("a") as manifest:
        manifest.write("nonsense\n")
    places, store = (tmp_path / "snapshot", tmp_path / "quarantine", tmp_path / "scratch"), tmp_path.as_uri() + "/store"
    results = [
        ingest(str(tmp_path / "source"), store, IngestConfig(), *places, shards=shards) for shards in (1, 2, 3, 9)
    ]
    assert results == [results[0]] * 4
    assert (results[0].accepted, results[0].quarantined) == (70, {"bad_row": 1})
    assert len(Snapshot.open(places[0], store).open_samples("train")[3].images[4]) > 100
    assert not any(places[2].glob("shard-*"))
