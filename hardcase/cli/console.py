"""What the commands share: options, and errors of ours as one line and an exit code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from hardcase.errors import HardcaseError

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StoreUri = Annotated[
    str | None, typer.Option("--store", envvar="HARDCASE_STORE", help="Object store: a folder or s3://bucket/prefix.")
]
errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def reported(as_json: bool = False) -> Iterator[None]:
    """Turn an error of ours into one line and an exit code."""
    try:
        yield
    except HardcaseError as error:
        fail({"message": str(error), "step": None, "exit_code": error.exit_code}, as_json)


def fail(error: dict[str, Any], as_json: bool) -> None:
    """Say the error in one line and leave with its exit code."""
    errors.print("error:", " ".join(str(error["message"]).split()))
    if as_json:
        typer.echo(json.dumps({"error": error}))
    raise typer.Exit(error["exit_code"])
