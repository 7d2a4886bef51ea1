"""Results on standard output: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from hardcase.data.conformance import Check
from hardcase.task.prompt import ASPECT_NAMES

COLUMNS = {"chance": "chance", "sft": "SFT", "grpo": "final", "model": "model"}


def run_result(summary: Mapping[str, Any]) -> None:
    """The scores, the verdict, where the report is."""
    console = Console(soft_wrap=True, highlight=False)
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
    Console(soft_wrap=True, highlight=False).print(table)


def scored(result: Mapping[str, Any], as_json: bool) -> None:
    """One model's scores."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_score_table(result["scores"]))
    console.print(f"{result['samples']} samples; answers in {result['evaluation']}")


def ingested(result: Mapping[str, Any], as_json: bool) -> None:
    """What came in and what did not."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    console = Console(soft_wrap=True, highlight=False)
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
            f"{scores['grpo']['exact_match']:.3f}" if scores else "",
            f"{model['name']} v{model['version']}" if model else "",
        )
    Console().print(table)


def screened(answers: Mapping[str, Mapping[str, str | None]], as_json: bool) -> None:
    """The letters of the flawed candidates, aspect by aspect."""
    if as_json:
        typer.echo(json.dumps(answers))
        return
    table = Table("aspect", "flawed")
    for aspect, found in answers.items():
        table.add_row(ASPECT_NAMES[aspect], found["answer"] or "invalid answer")
    Console().print(table)


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
