"""`hardcase rollback` and `hardcase promote`: people move the alias `champion`, and people are notified of it."""

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from hardcase.audit.examine import examine
from hardcase.cli.console import AsJson, StoreUri, reported
from hardcase.errors import HardcaseError
from hardcase.registry import champion
from hardcase.registry.champion import Outcome
from hardcase.registry.ledger import MODELS, Version, read_ledger, split_spec
from hardcase.registry.mirror import Mirror
from hardcase.report.notify import Notice, notify
from hardcase.runners.display import showing
from hardcase.runners.home import Home, name_of_user
from hardcase.steps.fetch import read_configuration
from hardcase.store.control import retain
from hardcase.store.store import open_store

logger = logging.getLogger(__name__)


def rollback(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME (the champion before the promoted one), or NAME:VERSION.")
    ],
    why: Annotated[str, typer.Option(help="Goes into the signed record.")] = "rolled back by hand",
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous or the named champion champion again. Repeated, it changes nothing."""
    _print_outcome(model, why, store, champion.roll_back, as_json)


def promote(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version, rejected by the gate or not.")],
    why: Annotated[str, typer.Option(help="Goes into the signed record, with your name.")],
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Make a registered version champion on your word. Repeated, it changes nothing."""
    _print_outcome(model, why, store, champion.promote, as_json)


def _print_outcome(spec: str, why: str, store: str | None, move: Callable[..., Outcome], as_json: bool) -> None:
    with reported(as_json):
        outcome = move_champion(spec, Home.of_latest(store), why, move)
    name, version = split_spec(spec), outcome.champion
    result = {"name": name, "version": version.number, "alias": "champion", "digest": version.digest}
    text = f"{name}@champion is :{version.number} now, digest {version.digest}"
    if not outcome.moved:
        text = f"{name}@champion is :{version.number} already"
        text += f"; `hardcase rollback {name}:VERSION` goes back further" if move is champion.roll_back else ""
    typer.echo(json.dumps({**result, "moved": outcome.moved}) if as_json else text)


def move_champion(spec: str, home: Home, why: str, move: Callable[..., Outcome]) -> Outcome:
    """Move the alias by `roll_back` or `promote` to a version that is audited first, and notify people.

    What comes after the entry of the ledger also comes after a repeated command, since the first one may have ended
    there. A failure of it is a warning.
    """
    store = open_store(home.store, cached=False, create=False)
    keys, name, who = home.keyring(), split_spec(spec), name_of_user()

    def verify(version: Version) -> None:
        if first := examine(store, f"{name}:{version.number}", keys).first:
            raise HardcaseError(f"{name}:{version.number} cannot serve: {first.problem}")

    with showing("champion"):
        mirror = Mirror(home.tracking_uri)
        outcome = move(store, keys, spec, who, why, verify)
        done = f"{name}@champion is :{outcome.champion.number}"
        try:
            if days := read_configuration(store, keys, outcome.champion).get("register", {}).get("retention_days"):
                for entry in store.list_names(f"{MODELS}/{name}/ledger"):
                    retain(store.uri, entry, days)
        except HardcaseError as error:
            logger.warning("%s, but the entry is not under retention; run again: %s", done, error)
        try:
            mirror.show(partial(read_ledger, store, name, keys), store.uri)
        except HardcaseError as error:
            logger.warning("%s, but MLflow does not show it: %s", done, error)
        try:
            if outcome.moved:
                notify(_describe_move(name, outcome, who, why, home), os.environ)
        except HardcaseError as error:
            logger.warning("%s", error)
    return outcome


def _describe_move(name: str, outcome: Outcome, who: str, why: str, home: Home) -> Notice:
    before = f":{outcome.replaced.number}" if outcome.replaced else "none"
    command = f"hardcase audit {name} --store {home.store}"
    facts = {"model": name, "champion": outcome.champion.number, "who": who, "why": why, "audit": command}
    facts["replaced"] = outcome.replaced.number if outcome.replaced else None
    return Notice(
        f"{name}@champion is :{outcome.champion.number} now, before {before}, by {who}: {' '.join(why.split())}",
        lines=[f"The record: {command}"],
        facts=facts,
    )
