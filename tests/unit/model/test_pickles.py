"""A pickle where a model is expected: refused in one line, and never run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import ModelConfig
from hardcase.errors import InputError
from hardcase.model.internvl import load_initial_model, load_model, save_model

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


@pytest.fixture
def folder(fresh_model: Build, tmp_path: Path) -> Path:
    save_model(*fresh_model(), tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path, match: str) -> None:
    for load in (load_model, lambda path: load_initial_model(ModelConfig(checkpoint=str(path)), [], seed=0)):
        with pytest.raises(InputError, match=match) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    assert not (folder.parent / "sprung").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_named_safetensors_is_refused_and_not_run(folder: Path, protocol: int) -> None:
    body = pickle.dumps({"w": Trap(folder.parent / "sprung")}, protocol=protocol)
    (folder / "model.safetensors").write_bytes(body)
    refused(folder, r"model .*model\.safetensors: is .*; only complete safetensors are loaded")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights_as_torch_saves_them_are_refused_and_not_run(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Trap(folder.parent / "sprung")}, folder / name)
    refused(folder, f"{name}: is a pickle, or may be one; only complete safetensors are loaded")


def test_an_index_that_names_a_pickle_is_refused_and_not_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "weights.dat").write_bytes(pickle.dumps({"w": Trap(folder.parent / "sprung")}, protocol=0))
    index = {"metadata": {}, "weight_map": {"w": "weights.dat"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "names weights of another kind; only complete safetensors are loaded")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_safetensors_truncated_are_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, r"model\.safetensors: is .*truncated")


def test_safetensors_that_only_the_reader_finds_fault_with_are_one_line_too(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    assert b'"F32"' in whole
    path.write_bytes(whole.replace(b'"F32"', b'"Q32"'))
    refused(folder, "name a folder or hub id with config, processor and safetensors")


def test_code_beside_the_weights_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}
    config |= {"model_type": "unheard_of", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'sprung')!r})\n")
    refused(folder, "name a folder or hub id with config, processor and safetensors")
