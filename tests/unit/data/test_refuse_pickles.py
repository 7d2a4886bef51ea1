"""Only whole safetensors are loaded, and nothing is unpickled to find out."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from hardcase.data.weights import refuse_pickles
from hardcase.errors import HardcaseError


def tensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def zipped() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(1))
    return buffer.getvalue()


SOUND = tensors({"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"abcd")
INDEX = "model.safetensors.index.json"


def test_a_folder_of_complete_safetensors_passes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model-00001-of-00001.safetensors").write_bytes(SOUND)
    (tmp_path / "empty.safetensors").write_bytes(tensors({}))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes").write_bytes(b"")
    (tmp_path / INDEX).write_text('{"weight_map": {"w": "model-00001-of-00001.safetensors"}}')
    refuse_pickles(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.PT", "deep/a.pth", "a.pkl", "a.pickle", "a.ckpt"])
def test_a_pickle_by_its_name_is_refused_whatever_it_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_text("")
    with pytest.raises(HardcaseError, match=f"{name}: is a pickle, or may be one; only complete safetensors"):
        refuse_pickles(tmp_path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "zip"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path, name: str, protocol: int | str) -> None:
    folder, trap = tmp_path / "model", tmp_path / "sprung"
    folder.mkdir()
    body = zipped() if protocol == "zip" else pickle.dumps(Trap(trap), protocol=int(protocol))
    (folder / name).write_bytes(body)
    if name == "config.json" and protocol in (0, 1):
        return  # these begin as text may; nobody unpickles a file of that name
    with pytest.raises(HardcaseError, match=name):
        refuse_pickles(folder)
    assert not trap.exists()


@pytest.mark.parametrize(
    "body",
    [
        *(SOUND[:length] for length in range(len(SOUND))),
        SOUND + b"more",
        struct.pack("<Q", 2**63) + SOUND[8:],
        struct.pack("<Q", len(SOUND)) + SOUND[8:],
        tensors([]),
        tensors({"w": 1}),
        tensors({"w": {"data_offsets": ["0", "4"]}}, b"abcd"),
        tensors({"w": {"data_offsets": []}}),
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 10**5) + b"[" * 10**5,
    ],
)
def test_what_is_truncated_or_no_safetensors_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(body)
    with pytest.raises(HardcaseError, match=r"model\.safetensors: is "):
        refuse_pickles(tmp_path)


@pytest.mark.parametrize("body", ['{"weight_map": {"w": "weights.dat"}}', '{"weight_map": 1}', "{}", "[", "[]"])
def test_an_index_cannot_send_the_reader_to_another_kind_of_file(tmp_path: Path, body: str) -> None:
    (tmp_path / INDEX).write_text(body)
    with pytest.raises(HardcaseError, match=INDEX):
        refuse_pickles(tmp_path)
