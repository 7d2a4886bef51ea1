"""A data folder with Python files in it, each of which leaves a trace when it is imported."""

from pathlib import Path

# Names that images and tables of a data set may have, of the standard library, of our packages, and of ours itself.
MODULES = (
    "accelerate", "airflow", "copy", "csv", "datasets", "deepspeed", "email", "hardcase", "imagehash", "json", "kfp",
    "kubernetes", "logging", "mlflow", "numpy", "pandas", "PIL", "pyarrow", "pydantic", "queue", "random", "scipy",
    "sitecustomize", "socket", "statistics", "tokenize", "torch", "transformers", "trl", "typer", "usercustomize",
    "yaml",
)  # fmt: skip


class HostileFolder:
    """Python files in `folder`; what is imported of them is named in a file beside the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trace = folder.parent / f"{folder.name}.imported"
        folder.mkdir(exist_ok=True)
        for name in MODULES:
            code = f"import sys\nwith open({str(self._trace)!r}, 'a') as trace: print({name!r}, sys.argv, file=trace)\n"
            for path in (folder / f"{name}.py", folder / name / "__init__.py"):
                path.parent.mkdir(exist_ok=True)
                path.write_text(code, encoding="utf-8")

    @property
    def imported(self) -> list[str]:
        """What was imported, and by which command."""
        return self._trace.read_text(encoding="utf-8").splitlines() if self._trace.exists() else []
