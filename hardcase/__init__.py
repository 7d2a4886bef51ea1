"""hardcase: retrain small vision-language models that screen generated images, and prove what they were made of.

The method is HCM-GRPO (*Image Aesthetic Reasoning via HCM-GRPO*, arXiv 2511.10055): supervised fine-tuning on
chains of thought, then GRPO with a partial-credit reward and mining of the hard cases.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("hardcase")
except PackageNotFoundError:  # a checkout that is not installed
    import tomllib

    __version__ = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["version"]
