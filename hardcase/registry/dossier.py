"""The release dossier of a version: the documents by which people decide on a model.

The model card has Hugging Face's form (front matter with `model-index`), the environment CycloneDX's, the provenance
in-toto's. The same facts give the same bytes.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2

from hardcase.provenance.sbom import sbom
from hardcase.task.prompt import ASPECT_NAMES

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


@dataclass(frozen=True)
class DossierFacts:
    """The content of a dossier.

    Attributes:
        name: name of the registered model.
        version: number of the version.
        digest: digest of the model's folder.
        verdict: `promoted` or `rejected`.
        reasons: reasons of the gate.
        differences: differences to the champion; None where nothing was compared.
        against: number of that champion.
        scores: `scores.json`.
        snapshot: the manifest.
        snapshot_id: sha256 of the manifest.
        source: URI of the data.
        config: configuration by step.
        seed: seed of the run.
        commit: git commit, or empty.
        clean: whether the working tree was as committed; None if unknown.
        code: sha256 of the code.
        run: id of the run that registered the version.
        drift: `drift.json`.
        mined: counts of `hardcase.data.cases.count_cases`.
        evaluation: `evaluation.parquet`.
        statement: the signed provenance.
    """

    name: str
    version: int
    digest: str
    verdict: str
    reasons: Sequence[str]
    differences: Mapping[str, Any] | None
    against: int | None
    scores: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    snapshot_id: str
    source: str
    config: Mapping[str, Any]
    seed: int
    commit: str
    clean: bool | None
    code: str
    run: str
    drift: Mapping[str, Any]
    mined: Mapping[str, int]
    evaluation: bytes
    statement: bytes


def make_dossier(facts: DossierFacts) -> dict[str, bytes]:
    """Return the files of a dossier by name."""
    gate = {
        "verdict": facts.verdict,
        "reasons": list(facts.reasons),
        "against": facts.against,
        "differences": facts.differences,
    }
    return {
        "README.md": _write_card(facts).encode(),
        "summary.md": _render("summary.md.j2", facts).encode(),
        "gate.json": _dump(gate),
        "scores.json": _dump(facts.scores),
        "evaluation.parquet": facts.evaluation,
        "sbom.cdx.json": sbom(),
        "provenance.dsse.json": facts.statement,
    }


def _write_card(facts: DossierFacts) -> str:
    from huggingface_hub import ModelCardData  # takes half a second, and only a registration needs it

    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=_find_base_model(facts.config),
        tags=["hardcase", "hcm-grpo", "image-aesthetics", "arxiv:2511.10055"],
        model_name=facts.name,
        eval_results=_list_results(facts),
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{_render('card.md.j2', facts)}"


def _find_base_model(config: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the initial checkpoint; None for a folder and for a model built from nothing."""
    checkpoint = config.get("model", {}).get("checkpoint") or ""
    return checkpoint if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", checkpoint, re.ASCII) else None


def _list_results(facts: DossierFacts) -> list[Any] | None:
    from huggingface_hub import EvalResult

    paths: dict[str, tuple[str, ...]] = {"overall partial credit": ("overall",), "exact match": ("exact_match",)}
    paths |= {f"partial credit, {name}": ("by_aspect", aspect) for aspect, name in ASPECT_NAMES.items()}
    values = {name: _look_up(facts.scores, ("final", *path)) for name, path in paths.items()}
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type="hardcase-snapshot",
            dataset_name=f"{facts.source}, evaluation split",
            dataset_revision=facts.snapshot_id,
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in values.items()
        if _is_number(value)
    ]
    return results or None


def _render(template: str, facts: DossierFacts) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 — Markdown; text from data is escaped by the filter `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _escape
    return environment.get_template(template).render(
        facts=facts,
        scores=_tabulate_scores(facts.scores),
        changes=_tabulate_changes(facts.differences) if facts.differences else None,
        settings=_list_settings(facts.config),
        alarms=[test["name"] for test in facts.drift.get("tests", []) if test["drifted"]],
    )


def _tabulate_scores(scores: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of scores: a row for each score, columns for chance, SFT and the model."""
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
    """Format a value with its interval."""
    if not _is_number(value):
        return "–"
    numbers = [format(bound, form) for bound in bounds or () if _is_number(bound)]
    return format(value, form) + (f" [{', '.join(numbers)}]" if len(numbers) == 2 else "")


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
