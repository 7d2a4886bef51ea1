"""`hardcase fetch` and `hardcase screen`: use a registered model."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hardcase.cli import show
from hardcase.cli.console import AsJson, ModelSpec, Settings, StoreUri, errors, output, reported
from hardcase.cli.settings import parse_settings
from hardcase.errors import InputError
from hardcase.lifetime import temporary_folder
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


def screen(
    model: ModelSpec,
    images: Annotated[list[Path], typer.Argument(metavar="ORIGINAL A B C D", help="Five image files.")],
    settings: Settings = None,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Say which of four generated images show a flaw, aspect by aspect."""
    with reported(as_json), temporary_folder() as scratch:
        if len(images) != 5:
            raise InputError(f"{len(images)} images given; name the original and four candidates")
        contents = [read_image(path) for path in images]
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "torchinductor"))  # else it stays in TMPDIR
        from hardcase.serving.models import fetch_for_screening
        from hardcase.serving.screening import Screener

        home = Home.of_latest(store)
        opened, keys = open_store(home.store, create=False), home.verifier()
        fetched = fetch_for_screening(opened, keys, model, scratch / "model", parse_settings(settings or []))
        (verdicts,) = Screener(fetched.folder, fetched.config, fetched.calibration).screen([contents])
        answers = {aspect: asdict(verdict) for aspect, verdict in verdicts.items()}
    output(answers, as_json, show.screened)
    if not any(parsed["answer"] for parsed in answers.values()):
        errors.print(f"error: {model}: every answer is invalid, so nothing was screened; use a model that was promoted")
        raise typer.Exit(1)


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file, or raise an `InputError` that names it."""
    from hardcase.data.images import MAX_BYTES, BadImage, decode_image

    try:
        if not path.is_file():  # a pipe would never end
            raise InputError(f"{path}: no such file; name five images")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        decode_image(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name a file that you may read") from error
    except BadImage as error:
        raise InputError(f"{path}: {error}; use a JPEG, PNG or WebP that opens") from error
    return content
