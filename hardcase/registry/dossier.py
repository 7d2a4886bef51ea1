"""The release dossier of a version: what goes with a model to whoever must decide on it, made of the facts alone.

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

# Of a table of scores: what a row is called, where its value stands, digits.
ROWS: Final = (
    ("overall (0–100)", ("overall",), 1),
    ("exact match (0–1)", ("exact_match",), 3),
    *((name, ("by_aspect", aspect), 1) for aspect, name in ASPECT_NAMES.items()),
)
# What Markdown reads as its own; the rest stays as it is, since many read the source.
MEANS_SOMETHING: Final = re.compile(
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
    """What the dossier is made of.

    Attributes:
        name: of the registered model.
        version: number.
        digest: of the model's folder.
        verdict: `promoted` or `rejected`.
        reasons: the gate's.
        differences: to the champion, as the gate found them; None where nothing was compared.
        against: number of that champion.
        scores: what evaluate reports.
        snapshot: the manifest.
        snapshot_id: its sha256.
        source: URI of the data.
        config: by step.
        seed: of everything drawn.
        commit: of git, or empty.
        clean: whether the tree was as committed; None if unknown.
        code: sha256 of the code.
        run: that registered it.
        drift: what drift reports.
        mined: number of cases by kind.
        evaluation: the table, Parquet.
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


def dossier(facts: DossierFacts) -> dict[str, bytes]:
    """Its files, by name."""
    gate = {
        "verdict": facts.verdict,
        "reasons": list(facts.reasons),
        "against": facts.against,
        "differences": facts.differences,
    }
    return {
        "README.md": _card(facts).encode(),
        "summary.md": _rendered("summary.md.j2", facts).encode(),
        "gate.json": _pretty(gate),
        "scores.json": _pretty(facts.scores),
        "evaluation.parquet": facts.evaluation,
        "sbom.cdx.json": sbom(),
        "provenance.dsse.json": facts.statement,
    }


def _card(facts: DossierFacts) -> str:
    from huggingface_hub import ModelCardData  # takes half a second, and only a registration needs it

    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=_base(facts.config),
        tags=["hardcase", "hcm-grpo", "image-aesthetics", "arxiv:2511.10055"],
        model_name=facts.name,
        eval_results=_results(facts),
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{_rendered('card.md.j2', facts)}"


def _base(config: Mapping[str, Any]) -> str | None:
    """The hub's name of the checkpoint that training started from; None for a folder and for a model from nothing."""
    checkpoint = config.get("model", {}).get("checkpoint") or ""
    return checkpoint if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", checkpoint, re.ASCII) else None


def _results(facts: DossierFacts) -> list[Any] | None:
    from huggingface_hub import EvalResult

    final = facts.scores.get("final") or {}
    values: dict[str, Any] = {
        "overall partial credit": final.get("overall"),
        "exact match": final.get("exact_match"),
        **{f"partial credit, {name}": (final.get("by_aspect") or {}).get(key) for key, name in ASPECT_NAMES.items()},
    }
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


def _rendered(template: str, facts: DossierFacts) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 — Markdown; text from data goes through `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    return environment.get_template(template).render(
        facts=facts,
        scores=_score_rows(facts.scores),
        changes=_change_rows(facts.differences) if facts.differences else None,
        settings=_settings(facts.config),
        alarms=[test["name"] for test in facts.drift.get("tests", []) if test["drifted"]],
    )


def _score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The table of scores: a row a score, a column each of chance, SFT and the model."""
    there = {key: scores[key] for key in COLUMNS if scores.get(key)}
    head = ["", *(COLUMNS[key] for key in there)]
    return [head] + [
        [name, *(_span(_at(score, keys), _at(score, ("intervals", *keys)), f".{digits}f") for score in there.values())]
        for name, keys, digits in ROWS
    ]


def _change_rows(differences: Mapping[str, Any]) -> list[list[str]]:
    """The table of what is new minus champion."""
    rows = [["", "difference"]]
    for name, keys, digits in ROWS:
        value, *ends = (_at(differences, (*keys, key)) for key in ("value", "low", "high"))
        rows.append([name, _span(value, ends, f"+.{digits}f")])
    return rows


def _at(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _span(value: Any, ends: Any, form: str) -> str:
    """A value with its interval."""
    if not _is_number(value):
        return "–"
    told = [format(end, form) for end in ends or () if _is_number(end)]
    return format(value, form) + (f" [{', '.join(told)}]" if len(told) == 2 else "")


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What decides the training; settings in groups (LoRA) one by one."""
    rows = [("starts from", _at(config, ("model", "checkpoint")) or "a tiny model built from nothing")]
    if revision := _at(config, ("model", "revision")):
        rows.append(("revision", revision))
    for step, keys in SETTINGS.items():
        for key in keys:
            value = _at(config, (step, key))
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            rows += [(f"{step}.{key}.{part}".strip("."), _setting(each)) for part, each in parts if each is not None]
    return rows


def _setting(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if math.isfinite(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(text: object) -> str:
    """Text from data, on one line, without a meaning in Markdown or HTML and without what cannot be seen."""
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
    line = MEANS_SOMETHING.sub(r"\\\g<0>", line)
    return NUMBERED.sub(r"\1\\\2", line)


def _pretty(value: Any) -> bytes:
    return (json.dumps(_finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    """Of what JSON cannot say (NaN), null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
