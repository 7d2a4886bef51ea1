"""Run the command line, as `hardcase` or `python -m hardcase`, whatever Python files are in the working directory."""

import os
import sys


def main() -> None:
    """Entry point; before imports are isolated, only `os` and `sys` are imported, which no file can replace."""
    isolate_imports()
    provide_home()
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


def provide_home() -> None:
    """Name a folder for caches and a user where a process has neither, as under a UID without an account.

    OpenShift and `docker run --user` start processes so. Libraries ask for both, and fail without an answer.
    """
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        root = os.path.abspath(os.environ.get("HARDCASE_HOME") or ".hardcase")
        if not os.access(os.environ.get("HOME", ""), os.W_OK):
            os.environ["HOME"] = f"{root}/user"
        os.environ.setdefault("USER", f"uid{os.getuid()}")


if __name__ == "__main__":
    main()
