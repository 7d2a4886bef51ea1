"""What the commands share: options, output for people or programs, and our errors as one line and an exit code."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hardcase.errors import HardcaseError
from hardcase.text import escape_controls

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StoreUri = Annotated[
    str | None, typer.Option("--store", envvar="HARDCASE_STORE", help="Object store: a folder or s3://bucket/prefix.")
]


class PrintableConsole(Console):
    """A console that prints no control characters of the text it is given."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


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
    """Report an error of ours in one line, and exit with its code."""
    try:
        yield
    except HardcaseError as error:
        fail({"message": str(error), "step": None, "exit_code": error.exit_code}, as_json)


def fail(error: dict[str, Any], as_json: bool) -> None:
    """Print an error in one line, and exit with its code."""
    errors.print("error:", " ".join(str(error["message"]).split()))
    if as_json:
        typer.echo(json.dumps({"error": error}))
    raise typer.Exit(error["exit_code"])
