"""The release dossier of a version: the documents by which people decide on a model.

The model card has Hugging Face's form (front matter with `model-index`), the environment CycloneDX's, the provenance
in-toto's. The same account gives the same bytes.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from hardcase.data.cases import count_cases, read_cases
from hardcase.data.scores import read_scores
from hardcase.provenance.sbom import sbom
from hardcase.registry.account import Account
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.score import TOO_FEW_GROUPS

# Rows of a table of scores: label, path of the value, digits.
ROWS: Final = (
    ("overall (0–100)", ("overall",), 1),
    ("exact match (0–1)", ("exact_match",), 3),
    *((name, ("by_aspect", aspect), 1) for aspect, name in ASPECT_NAMES.items()),
)
# Marks with a meaning in Markdown; the rest stays as it is, since many read the source.
MARKS: Final = re.compile(
    r"[\\`*<>|#~]|(?<!\w)_|_(?!\w)"  # emphasis, code, tags, cells
    r"|\](?=[(\[:])|^\[|&(?=#?\w+;)"  # links, entities
    r"|^[-+=]"  # lists, rules, headings
)
NUMBERED: Final = re.compile(r"^(\d+)([.)])(?=\s|$)")
COLUMNS: Final = {"chance": "chance", "sft": "SFT alone", "final": "this model"}
SETTINGS: Final = {
    "sft": ("steps", "batch_size", "learning_rate", "processes", "zero", "lora"),
    "mine": ("k", "temperature", "hard_below"),
    "grpo": ("steps", "batch_size", "learning_rate", "generations", "reward", "hard_share", "beta", "zero", "lora"),
}


def make_dossier(
    account: Account, name: str, number: int, gate: Mapping[str, Any], statement: bytes
) -> dict[str, bytes]:
    """Return the files of a version's dossier by name: of the gate's record, the signed provenance and the account."""
    scores, drift = read_scores(account.read("scores")), account.read_json("drift")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 — Markdown; text from data is escaped by the filter `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _escape
    environment.globals |= {
        "account": account,
        "name": name,
        "number": number,
        "gate": gate,
        "scores": scores,
        "snapshot": account.read_json("snapshot"),
        "mined": count_cases(read_cases(account.read("mined"))),
        "drift": drift,
        "trained": account.maker("model").circumstances,
        "score_table": _tabulate_scores(scores),
        "changes": _tabulate_changes(gate["differences"]) if gate["differences"] else None,
        "settings": _list_settings(account.config),
        "alarms": [test["name"] for test in drift.get("tests", []) if test["drifted"]],
    }
    card = f"---\n{_describe_model(account, name, scores)}\n---\n\n{environment.get_template('card.md.j2').render()}"
    return {
        "README.md": card.encode(),
        "summary.md": environment.get_template("summary.md.j2").render().encode(),
        "gate.json": _dump(gate),
        "scores.json": _dump(scores),
        "evaluation.parquet": account.read("evaluation"),
        "sbom.cdx.json": sbom(),
        "provenance.dsse.json": statement,
    }


def _describe_model(account: Account, name: str, scores: Mapping[str, Any]) -> str:
    """Return the front matter of the model card."""
    from huggingface_hub import EvalResult, ModelCardData  # takes half a second, and only a registration needs it

    paths: dict[str, tuple[str, ...]] = {"overall partial credit": ("overall",), "exact match": ("exact_match",)}
    paths |= {f"partial credit, {label}": ("by_aspect", aspect) for aspect, label in ASPECT_NAMES.items()}
    values = {metric: _look_up(scores, ("final", *path)) for metric, path in paths.items()}
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type="hardcase-snapshot",
            dataset_name=f"{account.source}, evaluation split",
            dataset_revision=account.objects["snapshot"].digest,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in values.items()
        if _is_number(value)
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=_find_base_model(account.config),
        tags=["hardcase", "hcm-grpo", "image-aesthetics", "arxiv:2511.10055"],
        model_name=name,
        eval_results=results or None,
    )
    return str(data.to_yaml(line_break="\n"))


def _find_base_model(config: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the initial checkpoint; None for a folder and for a model built from nothing."""
    checkpoint = config.get("model", {}).get("checkpoint") or ""
    return checkpoint if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", checkpoint, re.ASCII) else None


def _tabulate_scores(scores: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each score, with columns for chance, SFT and the model."""
    columns = {key: scores[key] for key in COLUMNS if scores.get(key)}
    rows = [["", *(COLUMNS[key] for key in columns)]]
    for name, keys, digits in ROWS:
        cells = [(_look_up(score, keys), _look_up(score, ("intervals", *keys))) for score in columns.values()]
        rows.append([name, *(_format_interval(value, bounds, f".{digits}f") for value, bounds in cells)])
    return rows


def _tabulate_changes(differences: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of differences, new minus champion."""
    rows = [["", "difference"]]
    for name, keys, digits in ROWS:
        value, *bounds = (_look_up(differences, (*keys, key)) for key in ("value", "low", "high"))
        rows.append([name, _format_interval(value, bounds, f"+.{digits}f")])
    return rows


def _look_up(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _format_interval(value: Any, bounds: Any, form: str) -> str:
    if not _is_number(value):
        return "–"
    numbers = [format(bound, form) for bound in bounds or () if _is_number(bound)]
    return f"{value:{form}} [{', '.join(numbers) if len(numbers) == 2 else TOO_FEW_GROUPS}]"


def _list_settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that decide the training; those of a group (LoRA) have a row each."""
    rows = [("starts from", _look_up(config, ("model", "checkpoint")) or "a tiny model built from nothing")]
    if revision := _look_up(config, ("model", "revision")):
        rows.append(("revision", revision))
    for step, keys in SETTINGS.items():
        for key in keys:
            value = _look_up(config, (step, key))
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            rows += [
                (f"{step}.{key}.{part}".strip("."), _format_setting(item)) for part, item in parts if item is not None
            ]
    return rows


def _format_setting(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if math.isfinite(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _escape(text: object) -> str:
    """Return text from data on one line, without invisible characters and with no meaning in Markdown or HTML."""
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
    line = MARKS.sub(r"\\\g<0>", line)
    return NUMBERED.sub(r"\1\\\2", line)


def _dump(value: Any) -> bytes:
    """Dump as JSON, numbers that are not finite as null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return (json.dumps(finite, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
