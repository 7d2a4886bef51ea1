"""Refuse model weights other than safetensors, because loading a pickle runs code that its author chose."""

import json
from pathlib import Path
from typing import Any, Final

from hardcase.errors import HardcaseError

PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Pickle protocols 2 to 5, and the zip that torch.save writes.
PICKLE_STARTS: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
HEADER: Final = 10**8  # bytes, the limit of safetensors itself


def refuse_pickles(folder: Path) -> None:
    """Verify that a folder holds no pickled weights, without unpickling anything.

    A pickle is known by its name or its first bytes. A file named safetensors that is not one or is truncated, and an
    index of weights that names files of another kind, are `HardcaseError`s too.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if fault := _find_fault(path):
            raise HardcaseError(
                f"{path}: {fault}; only complete safetensors are loaded: save the model so, move other files"
            )


def _find_fault(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix.lower() in PICKLES or start.startswith(PICKLE_STARTS):
        return "is a pickle, or may be one"
    try:
        if path.name.endswith(".safetensors.index.json"):
            named = json.loads(path.read_bytes())["weight_map"].values()
            return "" if all(name.endswith(".safetensors") for name in named) else "names weights of another kind"
        return _find_tensor_fault(path) if path.suffix.lower() == ".safetensors" else ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "is not of the format that its name claims"


def _find_tensor_fault(path: Path) -> str:
    """Compare the file's size with its header: eight bytes hold the header's length, and it holds each tensor's end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER, size - 8):
            return "is no safetensors file, or is truncated"
        header: dict[str, Any] = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return "" if 8 + length + max(ends, default=0) == size else "is truncated, or holds more than tensors"
