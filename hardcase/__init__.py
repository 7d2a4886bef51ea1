"""hardcase: retrain small vision-language models that screen generated images, and prove what they were made of.

The method is HCM-GRPO (*Image Aesthetic Reasoning via HCM-GRPO*, arXiv 2511.10055): supervised fine-tuning on
chains of thought, then GRPO with a partial-credit reward and mining of the hard cases.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Return the version, read when it is requested: `__main__` isolates imports before it imports more."""
    if name != "__version__":
        raise AttributeError(f"module 'hardcase' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hardcase")
    except PackageNotFoundError:  # a checkout that is not installed
        import tomllib
        from pathlib import Path

        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
