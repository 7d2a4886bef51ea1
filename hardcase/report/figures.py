"""Plots of a run as inline SVG: the same numbers give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hardcase.data.scores import PARTS
from hardcase.task.prompt import ASPECT_NAMES

COLOURS = {"chance": "#9aa3ad", "sft": "#d08a2e", "final": "#2f6fb5"}


def plot_scores(scores: Mapping[str, Any]) -> str:
    """Plot overall and per-aspect scores of chance, SFT and the final model with their 95% intervals, if any."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for offset, part in enumerate(part for part in PARTS if scores.get(part)):
        score = scores[part]
        values = [score["overall"], *(score["by_aspect"].get(aspect) for aspect in ASPECT_NAMES)]
        intervals = [score["intervals"]["overall"], *(score["intervals"]["by_aspect"].get(a) for a in ASPECT_NAMES)]
        for row, (value, interval) in enumerate(zip(values, intervals, strict=True)):
            if value is None:
                continue
            label = PARTS[part] if row == 0 else None
            error = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]] if interval else None
            axes.errorbar(value, row + (offset - 1) * 0.22, xerr=error, fmt="o", color=COLOURS[part], label=label)
    axes.set_yticks(range(1 + len(ASPECT_NAMES)), ["overall", *ASPECT_NAMES.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("score: mean partial credit × 100")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=3, frameon=False)
    return _render(figure)


def plot_training(log: Sequence[Mapping[str, Any]], curves: Mapping[str, str]) -> str:
    """Plot curves (title by column of the log) over the steps of one phase of training, each in a panel."""
    shown = {key: title for key, title in curves.items() if any(key in entry for entry in log)}
    figure = Figure(figsize=(2.5 * max(1, len(shown)), 2.2), layout="constrained")
    for panel, (key, title) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), panel)
        steps, values = zip(*((entry["step"], entry[key]) for entry in log if key in entry), strict=True)
        axes.plot(steps, values, color=COLOURS["chance"], linewidth=0.5)
        # One batch is small: the mean of the last twenty shows where training goes.
        means = [sum(values[max(0, at - 19) : at + 1]) / min(20, at + 1) for at in range(len(values))]
        axes.plot(steps, means, color=COLOURS["final"])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
    return _render(figure)


def _render(figure: Figure) -> str:
    buffer = io.StringIO()
    # The salt fixes the ids in the file, and no date goes in.
    with mpl.rc_context({"svg.hashsalt": "hardcase", "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=False)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
