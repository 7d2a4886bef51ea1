import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import ModelConfig
from hardcase.errors import InputError
from hardcase.model.internvl import load_initial_model, load_model, save_model
from hardcase.model.rollout import build_prompt_inputs
from hardcase.store.digest import path_digest
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def test_a_saved_model_comes_back_the_same(fresh_model: Build, samples: list[Sample], tmp_path: Path) -> None:
    model, processor = fresh_model()
    save_model(model, processor, tmp_path / "model")
    loaded, reader = load_model(tmp_path / "model")
    inputs = build_prompt_inputs(processor, samples[:2], model.device)
    again = build_prompt_inputs(reader, samples[:2], model.device)
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**again).logits)


def test_the_same_seed_saves_the_same_bytes_and_only_safetensors(fresh_model: Build, tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_model(*fresh_model(), tmp_path / name)
    assert path_digest(tmp_path / "first") == path_digest(tmp_path / "second")
    assert {path.suffix for path in (tmp_path / "first").iterdir()} <= {".safetensors", ".json", ".jinja"}


def test_a_call_of_the_tokenizer_does_not_change_the_saved_bytes(fresh_model: Build, tmp_path: Path) -> None:
    model, processor = fresh_model()
    for name, padding in (("left", {"padding": True, "padding_side": "left"}), ("none", {})):
        processor.tokenizer(["A", "A B"], **padding)
        save_model(model, processor, tmp_path / name)
    assert path_digest(tmp_path / "left") == path_digest(tmp_path / "none")


def test_a_local_checkpoint_goes_the_way_of_a_hub_one(fresh_model: Build, tmp_path: Path) -> None:
    save_model(*fresh_model(), tmp_path / "model")
    model, _ = load_initial_model(ModelConfig(checkpoint=str(tmp_path / "model")), [], seed=5)
    assert sum(weights.numel() for weights in model.parameters()) > 0


def test_a_checkpoint_with_the_stock_processor_loads_without_its_video_part(fresh_model: Build, tmp_path: Path) -> None:
    """As OpenGVLab/InternVL3-2B-hf lays its files out; the stock class cannot be made without torchvision."""
    save_model(*fresh_model(), tmp_path)
    whole = json.loads((tmp_path / "processor_config.json").read_text())
    pictures = whole.pop("image_processor") | {"image_processor_type": "GotOcr2ImageProcessorFast"}
    for name, content in (("preprocessor_config.json", pictures), ("processor_config.json", whole)):
        (tmp_path / name).write_text(json.dumps(content | {"processor_class": "InternVLProcessor"}))
    _, processor = load_model(tmp_path)
    assert processor.image_seq_length == 4
    assert processor.image_processor.max_patches == 1


def test_a_saved_checkpoint_keeps_its_settings_of_video_and_the_stock_class(fresh_model: Build, tmp_path: Path) -> None:
    """VLLM and `AutoProcessor` open neither a class of ours nor a folder without a video processor."""
    model, processor = fresh_model()
    save_model(model, processor, tmp_path / "tiny")
    shutil.copytree(tmp_path / "tiny", tmp_path / "checkpoint")
    saved = json.loads((tmp_path / "tiny/processor_config.json").read_text())
    assert saved["processor_class"] == "InternVLProcessor"
    assert saved.pop("video_processor") == {"video_processor_type": "InternVLVideoProcessor"}
    (tmp_path / "checkpoint/processor_config.json").write_text(json.dumps(saved))
    video = {"video_processor_type": "InternVLVideoProcessor", "num_frames": 8, "processor_class": "InternVLProcessor"}
    (tmp_path / "checkpoint/video_preprocessor_config.json").write_text(json.dumps(video))
    tiles = ModelConfig(checkpoint=str(tmp_path / "checkpoint"), max_tiles=3)
    for name in ("first", "second"):
        save_model(*load_initial_model(tiles, [], seed=0), tmp_path / name)
        tiles = ModelConfig(checkpoint=str(tmp_path / name))
        saved = json.loads((tmp_path / name / "processor_config.json").read_text())
        assert saved["processor_class"] == "InternVLProcessor"
        assert saved["video_processor"] == video
        assert saved["image_processor"]["max_patches"] == 3


def test_a_folder_of_an_earlier_version_loads(fresh_model: Build, tmp_path: Path) -> None:
    save_model(*fresh_model(), tmp_path)
    file = tmp_path / "processor_config.json"
    saved = json.loads(file.read_text()) | {"processor_class": "InternVLImageProcessor"}
    del saved["video_processor"]
    file.write_text(json.dumps(saved))
    assert load_model(tmp_path)[1].image_seq_length == 4


def test_a_folder_without_a_model_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="safetensors"):
        load_model(tmp_path)


def test_a_model_is_the_same_bytes_whether_it_was_loaded_offline_or_not(fresh_model: Build, tmp_path: Path) -> None:
    save_model(*fresh_model(), tmp_path / "made")
    code = (
        "import sys; from hardcase.model.internvl import load_model, save_model; "
        "save_model(*load_model(sys.argv[1]), __import__('pathlib').Path(sys.argv[2]))"
    )
    for offline in ("0", "1"):
        environment = {**os.environ, "HF_HUB_OFFLINE": offline}
        arguments = [sys.executable, "-c", code, str(tmp_path / "made"), str(tmp_path / offline)]
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
    assert path_digest(tmp_path / "0") == path_digest(tmp_path / "1")
