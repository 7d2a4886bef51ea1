"""What the commands share: options, output for people or programs, and our errors as one line and an exit code."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hardcase.errors import HardcaseError, InputError
from hardcase.text import make_printable

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A key of the configuration: sft.steps=100.")]
ModelSpec = Annotated[str, typer.Option("--model", help="Folder, NAME@ALIAS or NAME:VERSION.")]
StoreUri = Annotated[
    str | None, typer.Option("--store", envvar="HARDCASE_STORE", help="Object store: a folder or s3://bucket/prefix.")
]


class PrintableConsole(Console):
    """A console that prints no control characters of the text it is given."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=make_printable(segment.text))


# Errors of a path that the user names or may change.
NAMED: Final = {
    getattr(errno, name)
    for name in ("EACCES", "EEXIST", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EPERM", "EROFS")
}
console = PrintableConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = PrintableConsole(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def output(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a result as JSON, or as `show` prints it for people."""
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(result)


@contextmanager
def reported(as_json: bool = False) -> Iterator[None]:
    """Report an error of ours or of a file in one line, and exit with its code."""
    try:
        yield
    except HardcaseError as error:
        fail({"message": str(error), "step": None, "exit_code": error.exit_code}, as_json)
    except OSError as error:
        if error.filename is None:  # of a connection, say, and a fault of ours
            raise
        named = isinstance(error.filename, bytes | str) and error.errno in NAMED
        remedy = "name another path, or change its permissions" if named else "free space, or repair the disk"
        message = f"{os.fsdecode(error.filename)[:300]}: {error.strerror}; {remedy}"
        fail({"message": message, "step": None, "exit_code": InputError.exit_code if named else 1}, as_json)


def fail(error: dict[str, Any], as_json: bool) -> None:
    """Print an error in one line, and exit with its code."""
    errors.print("error:", " ".join(str(error["message"]).split()))
    if as_json:
        typer.echo(json.dumps({"error": error}))
    raise typer.Exit(error["exit_code"])
