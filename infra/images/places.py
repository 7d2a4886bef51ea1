"""Print as JSON the folders that the libraries of a step write to, after a write to each. Runs in an image.

python places.py [all]     all: with those of the training image
"""

import getpass
import json
import os
import sys
import tempfile
from pathlib import Path


def light() -> dict[str, str]:
    """Return the folders of what the light image holds."""
    import matplotlib
    from huggingface_hub import constants

    from hardcase.store.cache import open_cache

    return {
        "home": str(Path.home()),
        "XDG": os.environ["XDG_CACHE_HOME"],
        "matplotlib's cache": matplotlib.get_cachedir(),
        "matplotlib's settings": matplotlib.get_configdir(),
        "Hugging Face Hub": constants.HF_HUB_CACHE,
        "Xet": constants.HF_XET_CACHE,
        "hardcase": str(open_cache().folder),
    }


def training() -> dict[str, str]:
    """Return the folders of what only the training image holds."""
    import datasets
    import torch
    import transformers
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir
    from torch.utils.cpp_extension import get_default_build_root

    return {
        "datasets": str(datasets.config.HF_DATASETS_CACHE),
        "modules of models": transformers.utils.hub.HF_MODULES_CACHE,
        "torch.hub": torch.hub.get_dir(),
        "kernels of DeepSpeed": get_default_build_root(),
        "kernels of torch": cache_dir(),
        "kernels of Triton": triton_cache_dir(0),
        "kernels of numba": os.environ["NUMBA_CACHE_DIR"],
    }


def main(*arguments: str) -> None:
    """Print the user and the folders; fail at the first folder that cannot be written to."""
    folders = light() | (training() if arguments else {})
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    print(json.dumps({"user": getpass.getuser(), "folders": folders}))


if __name__ == "__main__":
    main(*sys.argv[1:])
