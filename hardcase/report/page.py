"""report: one self-contained page a run, the verdict first; a run that failed gets one too, of what there is."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from PIL import Image

from hardcase.data.images import decode_image
from hardcase.data.snapshot import Snapshot
from hardcase.report.figures import scores_figure, training_figure
from hardcase.task.answer import format_answer
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import LETTERS, Sample

HARD_CASES, MISSES, SIDE = 12, 8, 128
CURVES = {
    "warmup": {"loss": "perception warm-up: loss", "mean_token_accuracy": "token accuracy"},
    "reading": {"loss": "reading five pictures: loss", "mean_token_accuracy": "token accuracy"},
    "sft": {"loss": "SFT: loss", "mean_token_accuracy": "token accuracy"},
    "grpo": {
        "reward": "GRPO: mean reward",
        "frac_reward_zero_std": "groups without spread",
        "entropy": "entropy a token",
        "completions/mean_length": "completion length",
    },
}


def run(artifacts: Mapping[str, Path], facts: Mapping[str, Any], store: str, html: Path) -> None:
    """Write the report.

    Args:
        artifacts: what the steps made, by name; any may be missing.
        facts: what else to say of the run, label to value; `error` is shown first, as a failure unless `cancelled`.
        store: where the snapshot's shards lie.
        html: the page.
    """
    scores = _json(artifacts.get("scores"))
    logs = [*_lines(artifacts.get("sft_log")), *_lines(artifacts.get("grpo_log"))]
    phases = {phase: [entry for entry in logs if entry["phase"] == phase] for phase in CURVES}
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts={label: value for label, value in facts.items() if label not in ("error", "cancelled")},
            cancelled=facts.get("cancelled", False),
            error=facts.get("error"),
            registration=_json(artifacts.get("registration")),
            scores=scores,
            scores_figure=scores_figure(scores) if scores else None,
            training_figures=[training_figure(phases[phase], CURVES[phase]) for phase in CURVES if phases[phase]],
            drift=_json(artifacts.get("drift")),
            validation=_json(artifacts.get("validation")),
            quarantine=_counted(artifacts.get("quarantine")),
            mined=_mined_facts(artifacts.get("mined")),
            hard_cases=_hard_cases(artifacts, store),
            misses=_misses(artifacts, store),
            aspect_names=ASPECT_NAMES,
        )
    )
    html.write_text(page, encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: (
        "–" if value is None else f"{value:.3g}" if value < 1 else f"{value:.1f}"
    )
    return environment


def _json(path: Path | None) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def _lines(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path else []


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _counted(path: Path | None) -> dict[str, int] | None:
    if path is None:
        return None
    reasons = [row["reason"] for row in _rows(path)]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _mined_facts(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    rows = _rows(path)
    always = sum(row["exact_rate"] == 1 for row in rows)
    return {
        "training samples": len(rows),
        "solved in every rollout": always,
        "hard (solved now and then)": sum(row["hard"] for row in rows),
        "suspects (never solved)": sum(row["suspect"] for row in rows),
    }


def _hard_cases(there: Mapping[str, Path], store: str) -> list[dict[str, Any]]:
    """The hardest cases that the SFT model still solves now and then, aspects in turn."""
    if "mined" not in there or "snapshot" not in there:
        return []
    mined = {row["id"]: row for row in _rows(there["mined"]) if row["hard"]}
    ranked = sorted(mined, key=lambda id: (mined[id]["exact_rate"], id))
    chosen = _found(there["snapshot"], store, "train", ranked[: 4 * HARD_CASES])
    by_aspect = {aspect: [sample for sample in chosen if sample.aspect == aspect] for aspect in ASPECT_NAMES}
    turns = [samples[turn] for turn in range(HARD_CASES) for samples in by_aspect.values() if turn < len(samples)]
    return [
        _card(sample, [answer or "invalid" for answer in mined[sample.id]["answers"]]) for sample in turns[:HARD_CASES]
    ]


def _misses(there: Mapping[str, Path], store: str) -> list[dict[str, Any]]:
    """Evaluation samples that the final model gets most wrong."""
    if "evaluation" not in there or "snapshot" not in there:
        return []
    rows = {row["id"]: row for row in _rows(there["evaluation"]) if not row["exact"]}
    ranked = sorted(rows, key=lambda id: (rows[id]["dpa"], id))
    chosen = _found(there["snapshot"], store, "eval", ranked[:MISSES])
    return [_card(sample, [rows[sample.id]["text"]]) for sample in chosen]


def _found(snapshot: Path, store: str, split: str, ids: Iterable[str]) -> list[Sample]:
    wanted = {id: place for place, id in enumerate(ids)}
    found = [sample for sample in Snapshot.open(snapshot, store).iterate(split) if sample.id in wanted]
    return sorted(found, key=lambda sample: wanted[sample.id])


def _card(sample: Sample, answers: list[str]) -> dict[str, Any]:
    counted = {answer: answers.count(answer) for answer in sorted(set(answers), key=lambda a: (-answers.count(a), a))}
    return {
        "id": sample.id,
        "aspect": ASPECT_NAMES[sample.aspect],
        "truth": format_answer(sample.truth),
        "answers": counted,
        "pictures": [(name, _data_uri(data)) for name, data in zip(("original", *LETTERS), sample.images, strict=True)],
    }


def _data_uri(data: bytes) -> str:
    picture = decode_image(data)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
