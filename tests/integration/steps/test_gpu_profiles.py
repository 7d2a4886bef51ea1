"""The profiles for InternVL3-2B, run on a small random model of its classes: stock processor, 448 pixels, tiles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hardcase.config import PROFILES, IngestConfig, Profile, TinyModelConfig, load_profile
from hardcase.data.cases import read_cases
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.internvl import build_tiny, load_model, save_model
from hardcase.model.rollout import build_prompt_inputs
from hardcase.model.sft import collect_vocabulary_texts
from hardcase.steps.answer import run as answer
from hardcase.steps.evaluate import run as evaluate
from hardcase.steps.grpo import run as grpo
from hardcase.steps.ingest import run as ingest
from hardcase.steps.mine import run as mine
from hardcase.steps.rollout import run as rollout
from hardcase.steps.sft import run as sft
from hardcase.task.sample import ASPECTS

SMALL = TinyModelConfig(
    image_size=448, patch_size=14, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=1, heads=2
)
# A machine without GPUs stands in for eight: nothing else of the profile is changed but how long it takes.
HERE: dict[str, Any] = {"processes": 1, "zero": None, "steps": 1, "save_steps": 1, "accumulation": 1, "workers": 0}
HERE |= {"warmup_steps": 0, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in pictures of several shapes: what counts is the way they go."""
    folder = tmp_path_factory.mktemp("source")
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        names = [f"{number}-{place}.png" for place in range(5)]
        for place, name in enumerate(names):
            side = (300, 620) if place == number % 5 else (320, 320)
            Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)).save(folder / name)
        row = {"id": str(number), "aspect": ASPECTS[number % 4], "original": names[0], "candidates": names[1:]}
        rows.append(row | {"answer": ["A"], "reasoning": "A bends", "split": "train" if number < 6 else "eval"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "scratch").mkdir()
    store = (folder / "store").as_uri()
    places = folder / "snapshot", folder / "quarantine", folder / "scratch"
    ingest(str(source), store, IngestConfig(group_distance=0), *places)
    return places[0], store


@pytest.fixture(scope="module")
def checkpoint(data: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as OpenGVLab/InternVL3-2B-hf is: stock processor, up to 12 tiles a picture."""
    folder = tmp_path_factory.mktemp("checkpoint")
    samples = Snapshot.open(*data).open_samples("train", reasoning=True)
    model, processor = build_tiny(SMALL, collect_vocabulary_texts(samples, warm_up=False), 0)
    processor.image_processor.max_patches = 12
    save_model(model.to(torch.bfloat16), processor, folder)
    whole = json.loads((folder / "processor_config.json").read_text())
    pictures = whole.pop("image_processor") | {"image_processor_type": "GotOcr2ImageProcessorFast"}
    for name, content in (("preprocessor_config.json", pictures), ("processor_config.json", whole)):
        (folder / name).write_text(json.dumps(content | {"processor_class": "InternVLProcessor"}))
    return folder


def profile_here(name: str, checkpoint: Path, max_tiles: int) -> Profile:
    engine = {f"{step}.engine": "transformers" for step in ("mine", "grpo", "evaluate")}
    lengths = {f"{step}.max_new_tokens": 8 for step in ("mine", "grpo", "evaluate")} | {"mine.sample": 4}
    here = {f"{step}.{key}": value for step in ("sft", "grpo") for key, value in HERE.items()}
    model = {"model.checkpoint": str(checkpoint), "model.max_tiles": max_tiles}
    return load_profile(name, engine | lengths | here | model | {"sft.batch_size": 2, "grpo.batch_size": 8})


@pytest.mark.parametrize("name", ["internvl3-2b", "internvl3-2b-lora"])
def test_a_stock_checkpoint_goes_through_every_step(
    name: str, data: tuple[Path, str], checkpoint: Path, tmp_path: Path
) -> None:
    profile = profile_here(name, checkpoint, max_tiles=3)
    first, second = tmp_path / "sft", tmp_path / "grpo"
    sft(*data, profile.model, profile.sft, 0, tmp_path / "s", first, tmp_path / "sft.log")
    rollout(*data, first, profile.mine, 0, "1/1", tmp_path / "m", tmp_path / "rollouts")
    mine(*data, tmp_path / "rollouts", profile.mine, tmp_path / "mined")
    assert len(read_cases(tmp_path / "mined")) == 4, "no weight depends on the other two"
    places = tmp_path / "g", second, tmp_path / "grpo.log"
    weighted = profile.grpo.model_copy(update={"hard_share": 0.3})
    with pytest.raises(InputError, match="its ids are not the training split's"):
        grpo(*data, first, tmp_path / "mined", weighted, 0, *places)
    grpo(*data, first, tmp_path / "mined", profile.grpo, 0, *places)
    assert "hard_share" not in json.loads(places[2].read_text().splitlines()[0])
    before, after = tmp_path / "before", tmp_path / "after"
    for model, answers in ((first, before), (second, after)):
        answer(*data, model, profile.evaluate, 0, "1/1", tmp_path / f"kept-{answers.name}", answers)
    evaluate(*data, after, before, profile.evaluate, 0, tmp_path)
    assert json.loads((tmp_path / "scores").read_text())["samples"] == 2
    start, tuned = load_file(checkpoint / "model.safetensors"), load_file(first / "model.safetensors")
    assert start.keys() == tuned.keys()
    moved = {key for key in start if not start[key].float().equal(tuned[key].float())}
    assert moved
    if "lora" in name:
        assert all("language_model" in key and "_proj" in key for key in moved)
    samples = Snapshot.open(*data).open_samples("train", reasoning=True)
    model, processor = load_model(second)
    inputs = build_prompt_inputs(processor, samples[:1], model.device)
    assert inputs["pixel_values"].shape == (7, 3, 448, 448), "one picture of two tiles and a thumbnail, four of one"


def test_the_profiles_name_the_model_and_fit_its_node() -> None:
    for name in ("internvl3-2b", "internvl3-2b-lora"):
        profile = load_profile(name)
        assert profile.model.checkpoint == "OpenGVLab/InternVL3-2B-hf"
        assert profile.grpo.dtype == profile.sft.dtype == "bfloat16"
        assert profile.grpo.batch_size % profile.grpo.generations == 0, "groups stay whole on a GPU"
    assert load_profile("internvl3-2b").grpo.zero == 2
    for stage in (2, 3):
        settings = json.loads((PROFILES / f"zero{stage}.json").read_text())
        assert settings["zero_optimization"]["stage"] == stage
