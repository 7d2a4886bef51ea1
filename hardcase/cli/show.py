"""Results as tables for people, on standard output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.table import Column, Table
from rich.tree import Tree

from hardcase.audit.examine import Audit, Finding
from hardcase.cli.console import console
from hardcase.data.scores import upgrade_scores
from hardcase.registry.retention import UnreferencedObject
from hardcase.runners.cleaning import Leftover
from hardcase.store.conformance import Check
from hardcase.task.prompt import ASPECT_NAMES

SHOWN = 10
SPLIT_NAMES = {"train": "training", "eval": "evaluation"}
COLUMNS = {"chance": "chance", "sft": "SFT", "final": "final"}


def run_result(summary: Mapping[str, Any]) -> None:
    """Print the scores, the verdict, and the path of the report."""
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


def checked(checks: Sequence[Check]) -> None:
    """Print what a store supports."""
    table = Table("property", "needed", "", "seen")
    for check in checks:
        table.add_row(check.name, "yes" if check.required else "", check.verdict, check.detail)
    console.print(table)


def scored(record: Mapping[str, Any], folder: Path) -> None:
    """Print a model's scores."""
    if record["scores"]:
        console.print(_score_table(record["scores"]))
        console.print(f"{record['samples']} samples; answers in {folder / 'evaluation.parquet'}")


def ingested(result: Mapping[str, Any]) -> None:
    """Print how many rows were accepted and quarantined."""
    splits = ", ".join(f"{count} for {SPLIT_NAMES[split]}" for split, count in result["splits"].items())
    console.print(f"snapshot {result['snapshot']}\naccepted {result['accepted']} rows: {splits}")
    if result["groups"] is not None:
        console.print(f"groups: {result['groups']}; rows in the largest: {result['largest_group']}")
    for reason, count in sorted(result["quarantined"].items()):
        console.print(f"quarantined {count}: {reason}")
    console.print(f"quarantine: {result['quarantine']}")


def runs(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each run."""
    run, status = (Column(name, no_wrap=True) for name in ("run", "status"))
    profile, model = (Column(name, overflow="fold") for name in ("profile", "model"))
    # Without edges, for 80 columns with the ids of Kubeflow.
    lines: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(run, profile, status, "exact match", model, **lines)
    for summary in summaries:
        scores, version = summary.get("scores"), summary.get("model")
        table.add_row(
            summary["run_id"],
            summary.get("profile", ""),
            summary["status"],
            f"{upgrade_scores(scores)['final']['exact_match']:.3f}" if scores else "",
            f"{version['name']} v{version['version']}" if version else "",
        )
    console.print(table, soft_wrap=False)


def screened(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the letters of the flawed candidates, aspect by aspect, and how certain they are."""
    table = Table("aspect", "flawed", "confidence", "")
    for aspect, verdict in answers.items():
        confidence = "" if verdict["confidence"] is None else f"{verdict['confidence']:.2f}"
        note = "abstained: have a person look" if verdict["abstained"] else ""
        table.add_row(ASPECT_NAMES[aspect], verdict["answer"] or "invalid answer", confidence, note)
    console.print(table, soft_wrap=False)


def audited(audit: Audit, again: Mapping[str, Mapping[str, str]]) -> None:
    """Print the tree of findings and, of a replay, which digests are equal."""
    console.width = max(console.width, 132)  # names of objects are not cut off
    console.print(_branch(audit.tree))
    if again:
        table = Table("replay", "recorded", "again", "")
        for name, pair in again.items():
            equal = pair["recorded"] == pair["again"]
            table.add_row(name, pair["recorded"][:12], pair["again"][:12], "✓ same" if equal else "✗ other")
        console.print(table)
    if not audit.first:
        count = len({finding.place for finding in audit.tree.walk() if finding.place.startswith("objects/")})
        console.print(f"whole: {count} objects rehashed, {len(audit.ledger.moves)} signed ledger entries, chain closed")


def _branch(finding: Finding, into: Tree | None = None) -> Tree:
    mark = "✗" if finding.broken else "✓"
    line = f"{mark} {finding.what}  {finding.place}".rstrip() + (f"\n  {finding.problem}" if finding.problem else "")
    branch = Tree(line) if into is None else into.add(line)
    # Many intact parts are counted, not listed.
    whole = [part for part in finding.parts if not part.broken]
    several = len(whole) > 12 and into is not None
    for part in finding.parts:
        if part.broken or not several:
            _branch(part, branch)
    if several:
        branch.add(f"✓ {len(whole)} objects: {whole[0].what} … {whole[-1].what}")
    return branch


def changed(differences: Mapping[str, Any], before: str, after: str) -> None:
    """Print what differs between two versions."""
    for section, changes in differences.items():
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


def unreferenced(objects: Sequence[UnreferencedObject]) -> None:
    """Print the objects that nothing references."""
    for entry in objects:
        typer.echo(f"{entry.name}  {entry.size} bytes  {entry.written:%Y-%m-%d %H:%M}")
    typer.echo(
        f"{len(objects)} unreferenced objects, {sum(entry.size for entry in objects) / 1e6:.1f} MB; none was removed"
    )


def cleaned(leftovers: Sequence[Leftover], dry_run: bool) -> None:
    """Print what was removed, or would be."""
    for leftover in leftovers:
        console.print(f"{leftover.path}  {leftover.size} bytes  {leftover.what}")
    size = sum(leftover.size for leftover in leftovers) / 1e6
    console.print(f"{len(leftovers)} leftovers, {size:.1f} MB; {'none was' if dry_run else 'all were'} removed")


def _score_table(scores: Mapping[str, Any]) -> Table:
    there = {column: score for column, score in scores.items() if score}
    table = Table("", *(COLUMNS[column] for column in there))
    table.add_row("overall (0–100)", *(_points(score["overall"]) for score in there.values()))
    table.add_row("exact match", *(f"{score['exact_match']:.3f}" for score in there.values()))
    for aspect, name in ASPECT_NAMES.items():
        table.add_row(name, *(_points(score["by_aspect"].get(aspect)) for score in there.values()))
    table.add_row("valid answers", *(f"{score['valid']:.1%}" if "valid" in score else "–" for score in there.values()))
    return table


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
