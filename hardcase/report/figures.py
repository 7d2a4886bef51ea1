"""Curves of a training as inline SVG: the same numbers give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

EACH, MEAN = "#9aa3ad", "#2f6fb5"  # of the legend in report.html.j2 too
SMOOTHED: Final = 20  # one batch is small: the mean of the last twenty shows where training goes


def plot_training(log: Sequence[Mapping[str, Any]], curves: Mapping[str, str]) -> list[str]:
    """Plot curves (title by column of the log) over the steps of one phase of training, one image each."""
    return [_plot(log, key, title) for key, title in curves.items() if any(key in entry for entry in log)]


def _plot(log: Sequence[Mapping[str, Any]], key: str, title: str) -> str:
    figure = Figure(figsize=(2.5, 2.1), layout="constrained")  # inches: narrower than a phone
    axes = figure.add_subplot()
    steps, values = zip(*((entry["step"], entry[key]) for entry in log if key in entry), strict=True)
    axes.plot(steps, values, color=EACH, linewidth=0.5)
    means = [sum(values[max(0, at + 1 - SMOOTHED) : at + 1]) / min(SMOOTHED, at + 1) for at in range(len(values))]
    axes.plot(steps, means, color=MEAN)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.locator_params(axis="x", nbins=4)
    buffer = io.StringIO()
    # The salt fixes the ids in the file, and no date goes in.
    with mpl.rc_context({"svg.hashsalt": "hardcase", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=False)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
