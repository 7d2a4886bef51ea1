"""`hardcase fetch`: the files of a registered version, for transformers, vLLM and KServe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hardcase.cli.console import AsJson, StoreUri, reported
from hardcase.errors import InputError
from hardcase.registry.ledger import fetch_model, find_version, split_spec
from hardcase.runners.home import Home
from hardcase.store.store import open_store


def fetch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME@ALIAS or NAME:VERSION.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty or does not exist.")],
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Write a registered version's files, every signature and digest verified: all of them or none."""
    with reported(as_json):
        if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise InputError(f"{folder}: exists and is no empty folder; name another")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        home = Home.of_latest(store)
        opened, keys = open_store(home.store, cached=False, create=False), home.verifier()
        version = find_version(opened, keys, model)
        spec = f"{split_spec(model)}:{version.number}"  # an alias may move meanwhile
        fetch_model(opened, keys, spec, folder.absolute())
    result = {"model": spec, "digest": version.digest, "folder": str(folder.absolute())}
    typer.echo(json.dumps(result) if as_json else f"{spec}, digest {version.digest}, is in {folder}")
