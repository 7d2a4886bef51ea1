"""Run the command line, as `hardcase` or `python -m hardcase`, whatever Python files are in the working directory."""

import os
import sys


def main() -> None:
    """Entry point; before imports are isolated, only `os` and `sys` are imported, which no file can replace."""
    isolate_imports()
    from hardcase.cli.main import main as run_command

    run_command()


def isolate_imports() -> None:
    """Let neither this process nor one that it starts import from the working directory.

    `python -m` puts that directory first in the path, and an empty or relative entry of `PYTHONPATH` means it too.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  as `python -m` writes it
        del sys.path[0]
    entries = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    for path in (os.path.abspath(entry) for entry in entries if not entry.startswith("/")):
        if path in sys.path:
            sys.path.remove(path)
    if absolute := [entry for entry in entries if entry.startswith("/")]:
        os.environ["PYTHONPATH"] = os.pathsep.join(absolute)


if __name__ == "__main__":
    main()
