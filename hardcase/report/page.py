"""The report of a run: one self-contained page with the verdict first, also of a run that stopped early."""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from hardcase.data.cases import MinedCase, count_cases, read_cases
from hardcase.data.evaluations import INVALID, read_evaluation
from hardcase.data.images import decode_image
from hardcase.data.quarantine import count_quarantine
from hardcase.data.scores import PARTS, read_scores
from hardcase.data.snapshot import Snapshot
from hardcase.report.figures import EACH, MEAN, SMOOTHED, plot_training
from hardcase.stats.learning import is_above_chance, list_warnings, read_log
from hardcase.task.answer import format_answer
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import LETTERS, Sample
from hardcase.task.score import FEWEST_GROUPS, TOO_FEW_GROUPS

HARD_CASES, MISSES, SIDE = 12, 8, 128
# Curves of each phase of training: column of its log and title.
CURVES = {
    "warmup": {"loss": "warm-up: loss", "mean_token_accuracy": "warm-up: token accuracy"},
    "reading": {"loss": "reading: loss", "mean_token_accuracy": "reading: token accuracy"},
    "sft": {
        "loss": "SFT: loss",
        "mean_token_accuracy": "SFT: token accuracy",
        "eval_loss": "SFT, held-out rows: loss",
        "eval_exact_match": "SFT, held-out rows: exact match",
    },
    "grpo": {
        "reward": "GRPO: mean reward",
        "frac_reward_zero_std": "GRPO: groups without spread",
        "entropy": "GRPO: entropy a token",
        "completions/mean_length": "GRPO: completion length",
        "completions/clipped_ratio": "GRPO: cut completions",
        "eval_exact_match": "GRPO, held-out rows: exact match",
    },
}


def run(artifacts: Mapping[str, Path], labels: Mapping[str, Any], store: str, html: Path) -> None:
    """Write the report as an HTML page.

    `artifacts` holds the outputs of the steps by name; any may be missing. `labels` holds what else is shown of the
    run: its `error` is shown first, as a failure unless `cancelled` is true. The store holds the snapshot's shards.
    """

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        return reader(artifacts[name]) if name in artifacts else None

    scores = read("scores", lambda path: read_scores(path.read_bytes()))
    cases = read("mined", read_cases)
    evaluation = read("evaluation", lambda path: read_evaluation(path, "evaluation").to_pylist())
    snapshot = read("snapshot", lambda path: Snapshot.open(path, store))
    logs = [entry for name in ("sft_log", "grpo_log") for entry in read(name, read_log) or ()]
    phases = {phase: [entry for entry in logs if entry["phase"] == phase] for phase in CURVES}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": _format_number, "interval": _format_interval, "words": _in_words}
    page = environment.get_template("report.html.j2").render(
        labels={label: value for label, value in labels.items() if label not in ("error", "cancelled")},
        cancelled=labels.get("cancelled", False),
        error=labels.get("error"),
        registration=read("registration", _read_json),
        warnings=list_warnings(cases or (), logs, scores),
        fewest_groups=FEWEST_GROUPS,
        scores=scores,
        above_chance=scores is not None and is_above_chance(scores),
        parts={part: label for part, label in PARTS.items() if scores and scores.get(part)},
        aspects=ASPECT_NAMES,
        curves=[curve for phase in CURVES for curve in plot_training(phases[phase], CURVES[phase])],
        legend={"each": EACH, "mean": MEAN, "smoothed": SMOOTHED},
        drift=read("drift", _read_json),
        validation=read("validation", _read_json),
        quarantine=read("quarantine", count_quarantine),
        mined=None if cases is None else count_cases(cases),
        train=snapshot.count("train") if snapshot else 0,
        hard_cases=_show_hard_cases(snapshot, cases) if snapshot and cases else [],
        misses=_show_misses(snapshot, evaluation) if snapshot and evaluation else [],
    )
    html.write_text(page, encoding="utf-8")


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 1 else f"{value:.1f}"


def _in_words(value: Any) -> str:
    """Return a name of the code, or several with their values, in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_in_words(name)} {_in_words(held)}" for name, held in value.items())
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value).replace("_", " ")


def _format_interval(bounds: Sequence[float | None] | None, form: str) -> str:
    return TOO_FEW_GROUPS if bounds is None or None in bounds else form % tuple(bounds)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _show_hard_cases(snapshot: Snapshot, cases: Sequence[MinedCase]) -> list[dict[str, Any]]:
    """Return cards of the hardest cases that the SFT model solves now and then, aspects in turn."""
    hard = {case.id: case for case in cases if case.hard}
    ranked = sorted(hard, key=lambda id: (hard[id].exact_rate, id))
    samples = _find_samples(snapshot, "train", ranked[: 4 * HARD_CASES])
    by_aspect = [[sample for sample in samples if sample.aspect == aspect] for aspect in ASPECT_NAMES]
    chosen = [column[turn] for turn in range(HARD_CASES) for column in by_aspect if turn < len(column)][:HARD_CASES]
    return [_make_card(sample, [answer or INVALID for answer in hard[sample.id].answers]) for sample in chosen]


def _show_misses(snapshot: Snapshot, evaluation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return cards of the evaluation samples that the final model gets most wrong."""
    misses = {row["id"]: row for row in evaluation if not row["exact"]}
    ranked = sorted(misses, key=lambda id: (misses[id]["dpa"], id))
    samples = _find_samples(snapshot, "eval", ranked[:MISSES])
    return [_make_card(sample, [misses[sample.id]["text"]]) for sample in samples]


def _find_samples(snapshot: Snapshot, split: str, ids: Sequence[str]) -> list[Sample]:
    samples = snapshot.open_samples(split)
    places = {id: at for at, id in enumerate(samples.read_column("id"))}
    return [samples[places[id]] for id in ids if id in places]


def _make_card(sample: Sample, answers: Sequence[str]) -> dict[str, Any]:
    images = zip(("original", *LETTERS), sample.images, strict=True)
    return {
        "id": sample.id,
        "aspect": ASPECT_NAMES[sample.aspect],
        "truth": format_answer(sample.truth),
        "answers": dict(sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))),
        "images": [(name, _encode_image(data)) for name, data in images],
    }


def _encode_image(data: bytes) -> str:
    image = decode_image(data)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
