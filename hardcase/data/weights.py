"""Weights of models are safetensors and nothing else: a pickle runs what its writer wants when it is loaded."""

import json
from pathlib import Path
from typing import Any, Final

from hardcase.errors import HardcaseError

PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Pickles by protocol, and zip, as torch.save writes it.
PICKLE_STARTS: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
HEADER: Final = 10**8  # bytes; safetensors itself takes no longer one


def refuse_pickles(folder: Path) -> None:
    """Only safetensors are loaded: a pickle runs what its writer wants. Nothing is unpickled to find out.

    Raises:
        HardcaseError: a file under `folder` is a pickle by its name or its first bytes, or is named safetensors and is
            none, or is cut short, or an index of weights names other files than safetensors.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if fault := _fault(path):
            raise HardcaseError(
                f"{path}: {fault}; only whole safetensors are loaded: save the model so, and keep other files elsewhere"
            )


def _fault(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix.lower() in PICKLES or start.startswith(PICKLE_STARTS):
        return "is a pickle, or may be one"
    try:
        if path.name.endswith(".safetensors.index.json"):
            named = json.loads(path.read_bytes())["weight_map"].values()
            return "" if all(name.endswith(".safetensors") for name in named) else "names weights of another kind"
        return _tensors_fault(path) if path.suffix.lower() == ".safetensors" else ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "is not what its name says"


def _tensors_fault(path: Path) -> str:
    """Eight bytes say how long the header is, and it says where each tensor ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER, size - 8):
            return "is no safetensors file, or cut short"
        header: dict[str, Any] = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return "" if 8 + length + max(ends, default=0) == size else "is cut short, or holds more than tensors"
