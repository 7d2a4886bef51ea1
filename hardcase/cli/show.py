"""Results on standard output: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.tree import Tree

from hardcase.audit.examine import Audit, Finding
from hardcase.audit.examine import as_json as audit_as_json
from hardcase.data.scores import upgrade_scores
from hardcase.registry.retention import UnreferencedObject
from hardcase.store.conformance import Check
from hardcase.task.prompt import ASPECT_NAMES

SHOWN = 10
COLUMNS = {"chance": "chance", "sft": "SFT", "final": "final"}


def run_result(summary: Mapping[str, Any]) -> None:
    """The scores, the verdict, where the report is."""
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    if summary["scores"]:
        console.print(_score_table(summary["scores"]))
    if summary["model"]:
        model, gate = summary["model"], summary["gate"]
        console.print(f"{model['name']} version {model['version']}: {gate['verdict']}, now {model['alias']}")
        console.print(f"model digest {model['digest']}")
    if summary["drift"]:
        console.print(f"drift: {'yes' if summary['drift']['drifted'] else 'none'}")
    if summary["report"]:
        console.print(f"report: {summary['report']}")


def checked(checks: Sequence[Check], as_json: bool) -> None:
    """What a store can do."""
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
        return
    table = Table("property", "needed", "", "seen")
    for check in checks:
        table.add_row(check.name, "yes" if check.required else "", check.verdict, check.detail)
    Console(soft_wrap=True, highlight=False, emoji=False).print(table)


def scored(record: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print a model's scores."""
    if as_json:
        typer.echo(json.dumps(record))
    elif record["scores"]:
        console = Console(soft_wrap=True, highlight=False, emoji=False)
        console.print(_score_table(record["scores"]))
        console.print(f"{record['samples']} samples; answers in {folder / 'evaluation.parquet'}")


def ingested(result: Mapping[str, Any], as_json: bool) -> None:
    """What came in and what did not."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    console.print(f"snapshot {result['snapshot']}\naccepted {result['accepted']} rows")
    for reason, count in sorted(result["quarantined"].items()):
        console.print(f"quarantined {count}: {reason}")
    console.print(f"quarantine: {result['quarantine']}")


def runs(summaries: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """One line a run."""
    if as_json:
        typer.echo(json.dumps(list(summaries)))
        return
    table = Table(Column("run", no_wrap=True), "profile", "status", "exact match", Column("model", overflow="fold"))
    for summary in summaries:
        scores, model = summary.get("scores"), summary.get("model")
        table.add_row(
            summary["run_id"],
            summary.get("profile", ""),
            summary["status"],
            f"{upgrade_scores(scores)['final']['exact_match']:.3f}" if scores else "",
            f"{model['name']} v{model['version']}" if model else "",
        )
    Console(emoji=False).print(table)


def screened(answers: Mapping[str, Mapping[str, str | None]], as_json: bool) -> None:
    """The letters of the flawed candidates, aspect by aspect."""
    if as_json:
        typer.echo(json.dumps(answers))
        return
    table = Table("aspect", "flawed")
    for aspect, found in answers.items():
        table.add_row(ASPECT_NAMES[aspect], found["answer"] or "invalid answer")
    Console(emoji=False).print(table)


def audited(found: Audit, again: Mapping[str, tuple[str, str]], as_json: bool) -> None:
    """The tree of what was found, and of a replay which digests are the same."""
    if as_json:
        replay = {name: {"recorded": pair[0], "again": pair[1]} for name, pair in again.items()}
        typer.echo(json.dumps(audit_as_json(found) | ({"replay": replay} if again else {})))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, 132)  # names of objects are not cut off
    console.print(_branch(found.tree))
    if again:
        table = Table("replay", "recorded", "again", "")
        for name, (recorded, new) in again.items():
            table.add_row(name, recorded[:12], new[:12], "✓ same" if recorded == new else "✗ other")
        console.print(table)
    if not found.first:
        count = len({finding.place for finding in found.tree.walk() if finding.place.startswith("objects/")})
        console.print(f"whole: {count} objects rehashed, {len(found.ledger.moves)} signed ledger entries, chain closed")


def _branch(finding: Finding, into: Tree | None = None) -> Tree:
    mark = "✗" if finding.broken else "✓"
    line = f"{mark} {finding.what}  {finding.place}".rstrip() + (f"\n  {finding.problem}" if finding.problem else "")
    branch = Tree(line) if into is None else into.add(line)
    # Of many parts, those that are whole are counted.
    whole = [part for part in finding.parts if not part.broken]
    several = len(whole) > 12 and into is not None
    for part in finding.parts:
        if part.broken or not several:
            _branch(part, branch)
    if several:
        branch.add(f"✓ {len(whole)} objects: {whole[0].what} … {whole[-1].what}")
    return branch


def changed(found: Mapping[str, Any], before: str, after: str, as_json: bool) -> None:
    """What differs between two versions."""
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for section, changes in found.items():
        if section in ("data", "code"):
            counted = ", ".join(f"{len(items)} {how}" for how, items in changes.items())
            console.print(f"{section}: {counted}")
            for how, items in changes.items():
                for item in items[:SHOWN]:
                    console.print(f"  {how} {item}")
                if len(items) > SHOWN:
                    console.print(f"  {how} … and {len(items) - SHOWN} more (all by --json)")
        elif changes:
            table = Table(section, before, after)
            for key, pair in changes.items():
                table.add_row(key, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in pair))
            console.print(table)
        else:
            console.print(f"{section}: no difference")


def unreferenced(objects: Sequence[UnreferencedObject], as_json: bool) -> None:
    """Print the objects that nothing references."""
    if as_json:
        typer.echo(json.dumps([asdict(entry) | {"written": entry.written.isoformat()} for entry in objects]))
        return
    for entry in objects:
        typer.echo(f"{entry.name}  {entry.size} bytes  {entry.written:%Y-%m-%d %H:%M}")
    typer.echo(
        f"{len(objects)} unreferenced objects, {sum(entry.size for entry in objects) / 1e6:.1f} MB; none was removed"
    )


def _score_table(scores: Mapping[str, Any]) -> Table:
    there = {column: score for column, score in scores.items() if score}
    table = Table("", *(COLUMNS[column] for column in there))
    table.add_row("overall (0–100)", *(_points(score["overall"]) for score in there.values()))
    table.add_row("exact match", *(f"{score['exact_match']:.3f}" for score in there.values()))
    for aspect, name in ASPECT_NAMES.items():
        table.add_row(name, *(_points(score["by_aspect"].get(aspect)) for score in there.values()))
    return table


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
