"""The command line. Results go to standard output, everything else to standard error; exit codes as in the README."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from hardcase import __version__
from hardcase.audit.examine import as_json as audit_as_json
from hardcase.cli import show
from hardcase.cli.champion import promote, rollback
from hardcase.cli.console import AsJson, ModelSpec, Settings, StoreUri, errors, output, reported
from hardcase.cli.launch import launch
from hardcase.cli.models import fetch, screen
from hardcase.cli.settings import parse_settings
from hardcase.compiled import FOLDER
from hardcase.config import Profile, load_profile
from hardcase.data.listing import source_digest
from hardcase.data.source import split_sources
from hardcase.errors import InputError
from hardcase.lifetime import exit_on_sigterm, tie_children
from hardcase.provenance.code import ROOT
from hardcase.registry.ledger import split_spec
from hardcase.registry.runs import list_runs
from hardcase.runners.home import QUIET, Home
from hardcase.store.location import parse_local_path
from hardcase.store.store import open_store, write_atomically
from hardcase.text import PrintableFormatter

if TYPE_CHECKING:
    from hardcase.runners.local import Outcome

app = typer.Typer(
    help="Retrain a small vision-language model that screens generated images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ProfileName = Annotated[str, typer.Option("--profile", help="Name in profiles/, or path of a YAML file.")]
OfStore = Annotated[str | None, typer.Option("--store", help="Of the runs recorded there, wherever they ran.")]
Containers = Annotated[
    bool, typer.Option("--containers", help="Each step in a container of its image; `make images` builds them.")
]


def print_version(asked: bool) -> None:
    """Print the version and leave, if that is asked for."""
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Retrain a small vision-language model that screens generated images."""


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an encoding without our characters is no reason to fail
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    os.environ.update(QUIET)
    exit_on_sigterm()
    tie_children()
    app()


def make_absolute(source: str) -> str:
    """Return a path given relative to the working directory as an absolute one; a URI as it is."""
    return source if "://" in source or source.startswith("snapshot:") else str(Path(source).absolute())


def read_profile(
    profile: str, source: str | None, seed: int | None, settings: list[str]
) -> tuple[Profile, dict[str, Any]]:
    """Return the profile changed by the command line, and the pipeline's arguments that say the same."""
    chosen = parse_settings(settings)
    own = {"seed": seed, "source": source}
    loaded = load_profile(profile, {**chosen, **{name: value for name, value in own.items() if value is not None}})
    loaded = loaded.model_copy(update={"source": make_absolute(loaded.source)})
    name = str(Path(profile).absolute()) if Path(profile).suffix in (".yaml", ".yml") else profile
    return loaded, {"profile": name, "source": loaded.source, "seed": loaded.seed, "settings": chosen}


@app.command()
def run(
    profile: ProfileName = "tiny",
    source: Annotated[
        str | None, typer.Option(help="URI or path of the samples, or several URIs; the profile's by default.")
    ] = None,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    store: StoreUri = None,
    containers: Containers = False,
    as_json: AsJson = False,
) -> None:
    """Retrain end to end; what was done before is not done again. SFT learns only from rows with `reasoning`."""
    with reported(as_json):
        chosen, arguments = read_profile(profile, source, seed, settings or [])
        from hardcase.runners.containers import Inputs
        from hardcase.runners.local import run_pipeline

        checkpoint = chosen.model.checkpoint or ""
        hub = bool(checkpoint) and not Path(checkpoint).exists()
        rewards = [name.rpartition(":")[0] for name in chosen.grpo.rewards if name.startswith("/")]
        boards = ["https://api.wandb.ai"] if chosen.metrics == "wandb" else []
        inputs = Inputs((*split_sources(chosen.source), arguments["profile"], checkpoint, *rewards, *boards), hub)
        outcome = run_pipeline("retraining", arguments, Home.here(store), inputs, containers)
        resolved = yaml.safe_dump(chosen.model_dump(mode="json", by_alias=True), sort_keys=False)
        write_atomically(outcome.folder / "config.yaml", resolved.encode())
    end(outcome, as_json, show.run_result)


def end(outcome: "Outcome", as_json: bool, show_result: Callable[[Any], None]) -> None:
    """Print a run's warnings, its result, and why it failed or its model was rejected; leave with its exit code."""
    for warning in outcome.record["warnings"]:
        errors.print("warning:", warning)
    output(outcome.record, as_json, show_result)
    if error := outcome.record["error"]:
        message = " ".join(str(error["message"]).split())
        if error["exit_code"] == 1:
            logs = outcome.folder / "logs"
            log = path if (path := logs / f"{error['step']}.log").is_file() else logs
            message = f"{error['step']}: {message}; the log is {log}; run again to continue from here"
        errors.print("error:", message)
    elif outcome.exit_code:
        errors.print("error: rejected by the gate:", "; ".join(outcome.record["gate"]["reasons"]))
    raise typer.Exit(outcome.exit_code)


@app.command()
def ingest(
    source: Annotated[str, typer.Option(help="URI or path of the samples, or several URIs with spaces between.")],
    profile: ProfileName = "tiny",
    settings: Settings = None,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Read a source into a snapshot, and nothing more."""
    with reported(as_json):
        from hardcase.cli.ingesting import ingest_source

        chosen, _ = read_profile(profile, source, None, settings or [])
        home = Home.here(store)
        with home.locked():
            folder, result = ingest_source(chosen.source, chosen.ingest, home, Path(profile).stem)
    output({**result, "quarantine": str(folder / "quarantine.parquet")}, as_json, show.ingested)


@app.command(name="source-digest")
def digest_source(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="URI, folder or manifest.")], as_json: AsJson = False
) -> None:
    """Say what a source holds without reading it: another digest, other data; none where its URI says it all."""
    with reported(as_json):
        named = make_absolute(source)
        for each in split_sources(named):
            by_path = each.startswith("file://") or ("://" not in each and not each.startswith("snapshot:"))
            if by_path and not parse_local_path(each).exists():
                raise InputError(f"source {each}: it does not exist; name a folder, a manifest or a URI")
        digest = source_digest(named, Home.here().root)
    typer.echo(json.dumps({"source": named, "digest": digest}) if as_json else digest)


@app.command()
def runs(store: OfStore = None, as_json: AsJson = False) -> None:
    """List the runs, the newest first: those of this machine's home, or those recorded in a store."""
    with reported(as_json):
        home = Home.here()
        summaries = list_runs(open_store(store, cached=False, create=False)) if store else home.summaries()
        if not summaries:
            errors.print("note: no runs in", store or home.runs)
        output(summaries, as_json, show.runs)


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN|latest")] = "latest",
    store: OfStore = None,
    as_json: AsJson = False,
) -> None:
    """Print where the report of a run is; one from a store is written to report-RUN.html in this folder."""
    with reported(as_json):
        page = fetched_report(run_id, store) if store else Home.here().run_folder(run_id) / "report.html"
        if not page.is_file():
            raise InputError(f"run {run_id!r}: it has no report; `hardcase runs` says how it ended")
    typer.echo(json.dumps({"report": str(page)}) if as_json else page)


def fetched_report(run_id: str, uri: str) -> Path:
    """Write the report of a run that is recorded in a store into this folder."""
    store = open_store(uri, create=False)
    known = {run["run_id"]: run for run in list_runs(store)}
    run = next(iter(known.values()), None) if run_id == "latest" else known.get(run_id)
    if run is None:
        raise InputError(f"run {run_id!r}: not recorded in {store.uri}; `hardcase runs --store {uri}` lists them")
    if not (digest := run.get("report")):
        raise InputError(f"run {run['run_id']!r}: it has no report; it is {run['status']}")
    page = Path(f"report-{run['run_id']}.html").absolute()
    write_atomically(page, store.get_object(digest))
    return page


@app.command()
def evaluate(
    model: ModelSpec,
    source: Annotated[str, typer.Option("--source", "--data", help="Where the samples with answers are.")],
    settings: Settings = None,
    store: StoreUri = None,
    containers: Containers = False,
    as_json: AsJson = False,
) -> None:
    """Score a model on data: the rows marked `eval`, or all when none is marked."""
    with reported(as_json):
        from hardcase.runners.containers import Inputs
        from hardcase.runners.local import run_pipeline

        home, source = Home.of_latest(store), make_absolute(source)
        spec = str(Path(model).absolute()) if Path(model).is_dir() else model
        if spec == model:
            open_store(home.store, create=False)
        arguments = {"model": spec, "source": source, "settings": parse_settings(settings or [])}
        outcome = run_pipeline("evaluation", arguments, home, Inputs((*split_sources(source), spec)), containers)
    end(outcome, as_json, partial(show.scored, folder=outcome.folder))


app.command()(screen)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME (its champion), NAME@ALIAS or NAME:VERSION.")],
    store: StoreUri = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="Public key to trust, in PEM, instead of this machine's.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the drawn graph to this file.")] = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="V1 V2", help="Say what changed between versions.")
    ] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Run the recorded steps again and compare digests.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Write MLflow's entries again from the store first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove what a model was made of: rehash everything and verify every signature.

    Damage ends with exit code 1, a store that does not answer with 4.
    """
    from hardcase.cli import auditing

    with reported(as_json):
        if html is not None and html.is_dir():
            raise InputError(f"--html {html}: it is a folder; name a file")
        home = Home.of_latest(store)
        if rebuild:
            auditing.rebuild(model, home)
        if diff is not None:
            differences = auditing.compared(split_spec(model), *diff, home, key or [])
            output(differences, as_json, lambda value: show.changed(value, *diff))
            return
        result = auditing.audited(model, home, key or [])
        if html is not None:
            from hardcase.audit.page import render_page

            write_atomically(html, render_page(result).encode())
        again = {}
        if replay and not result.first:
            from hardcase.runners.replay import replay as replay_version

            again = replay_version(result, home)
        content = audit_as_json(result) | ({"replay": again} if again else {})
        output(content, as_json, lambda _: show.audited(result, again))
    unequal = ((name, pair["again"], pair["recorded"]) for name, pair in again.items() if len(set(pair.values())) > 1)
    problems = (f"replay: {name} is {new[:12]}, recorded was {recorded[:12]}" for name, new, recorded in unequal)
    if problem := result.first.problem if result.first else next(problems, ""):
        newer = result.first is not None and result.first.newer
        errors.print("error: cannot be judged:" if newer else "error: broken:", " ".join(problem.split()))
        raise typer.Exit(2 if newer else 1)


app.command()(fetch)
app.command()(rollback)
app.command()(promote)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, max=36_500, help="Days since the last change. A younger step may be resumed.")
    ] = 7,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Remove what stopped and ended runs left on this machine: scratch folders, step records, drafts.

    What an audit names stays, and what a running run uses. A store on S3 is left alone.
    """
    with reported(as_json):
        from hardcase.runners.cleaning import list_leftovers, remove_leftovers

        home = Home.here(store)
        if not home.root.is_dir():
            raise InputError(f"home {home.root}: no such folder; name the home in HARDCASE_HOME")
        leftovers = (list_leftovers if dry_run else remove_leftovers)(home, time.time() - older_than * 86_400)
    content = [{"what": left.what, "path": str(left.path), "bytes": left.size} for left in leftovers]
    output({"removed": not dry_run, "leftovers": content}, as_json, lambda _: show.cleaned(leftovers, dry_run))


stores = typer.Typer(help="The object store.", no_args_is_help=True)
app.add_typer(stores, name="store")


@stores.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", hidden=True)] = True,
    older_than: Annotated[
        float, typer.Option(min=0, max=36_500, help="Days; younger objects may belong to a run in progress.")
    ] = 7,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """List objects that no registered model or recorded run references; nothing is removed."""
    with reported(as_json):
        from hardcase.registry.retention import list_unreferenced

        home = Home.of_latest(store)
        opened = open_store(home.store, cached=False, create=False)
        objects = list_unreferenced(opened, home.verifier(), timedelta(days=older_than))
    content = [asdict(entry) | {"written": entry.written.isoformat()} for entry in objects]
    output(content, as_json, lambda _: show.unreferenced(objects))


@stores.command()
def check(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A folder or s3://bucket/prefix.")], as_json: AsJson = False
) -> None:
    """Try what we rely on in a store, and refuse one that fails."""
    with reported(as_json):
        from hardcase.store.conformance import check_store, require_conformance

        checks = check_store(uri)
        output({"checks": [asdict(check) for check in checks]}, as_json, lambda _: show.checked(checks))
        require_conformance(uri, checks)


@app.command(name="compile")
def compile_pipelines(
    check: Annotated[bool, typer.Option("--check", help="Only compare with the committed files.")] = False,
) -> None:
    """Compile the pipelines of a checkout to the YAML that every runner executes."""
    with reported():
        if not (ROOT / "pipelines" / "compile.py").is_file():
            raise InputError(f"compile: this is no checkout; the compiled pipelines are in {FOLDER}")
        command = [sys.executable, "-m", "pipelines.compile", *(["--check"] if check else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            raise InputError("compile: the committed pipelines differ from their source; run `hardcase compile`")


app.command()(launch)
