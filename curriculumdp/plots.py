"""Plots as PNG bytes, drawn by matplotlib without a display. As private as the numbers they show."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

EASY, HARD, REAL, QUIET = (
    "#d97706",
    "#3f51b5",
    "#0f766e",
    "#94a3b8",
)  # central, private, real images, everything else
INK = "#334155"
WIDTH, HEIGHT, DPI = 4.6, 2.9, 180  # inches: the width of a phone, so that text stays readable there


def figure_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG without date or software name, so that the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def axes(xlabel: str, ylabel: str, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty plot in the house style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.add_subplot()
    _style(plot, xlabel, ylabel)
    return figure, plot


def _style(plot: Axes, xlabel: str, ylabel: str) -> None:
    plot.set_xlabel(xlabel, color=INK)
    plot.set_ylabel(ylabel, color=INK)
    plot.tick_params(colors=INK, labelsize=9)
    plot.grid(axis="y", color="#e2e8f0", linewidth=0.8)
    plot.set_axisbelow(True)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        plot.spines[side].set_color(QUIET)


def utility_plot(utility: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Plot accuracy by classifier, as PNG: a bar for the mean, a dot per seed."""
    figure, plot = axes("", "accuracy on real images, %")
    for index, (name, value) in enumerate(utility.items()):
        mean = value["mean"] * 100
        plot.bar(index, mean, width=0.55, color=HARD, label=name)
        spots = np.linspace(-0.12, 0.12, len(value["values"])) if len(value["values"]) > 1 else np.zeros(1)
        plot.scatter(index + spots, np.array(value["values"]) * 100, s=14, color=EASY, zorder=3)
        plot.text(index, mean + 2.5, f"{mean:.1f}", color=INK, ha="center")
    plot.set_xticks(range(len(utility)), list(utility))
    plot.set_ylim(0, 112)
    plot.set_yticks(range(0, 101, 20))
    return figure_bytes(figure)


def distances_plot(synthetic: np.ndarray, held_out: np.ndarray) -> bytes:
    """Plot the distances of synthetic and of held-out real images to the training set, as PNG. PRIVATE."""
    figure, plot = axes("RMS pixel distance to the nearest training image", "fraction of images")
    edges = np.linspace(0, float(max(synthetic.max(), held_out.max())) * 1.02 + 1e-9, 41).tolist()
    for values, colour, label in ((held_out, REAL, "held-out real"), (synthetic, HARD, "synthetic")):
        weights = np.full(len(values), 1 / len(values))
        plot.hist(values, edges, weights=weights, histtype="stepfilled", alpha=0.2, color=colour)
        plot.hist(values, edges, weights=weights, histtype="step", color=colour, label=label, linewidth=1.6)
    plot.legend(frameon=False, labelcolor=INK)
    return figure_bytes(figure)


def curve_plot(
    phases: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, log: bool = False
) -> bytes:
    """Plot each phase's points (x, y) as a line, as PNG; long series also get a running mean."""
    figure, plot = axes(xlabel, ylabel)
    for (name, points), colour in zip(phases.items(), (HARD, EASY, REAL, QUIET), strict=False):
        x, y = np.array(points, dtype=float).T
        window = max(1, len(y) // 25)
        if window > 1:
            plot.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        plot.plot(x[window - 1 :], smooth, color=colour, label=name, linewidth=1.6)
    if log:
        plot.set_yscale("log")
    if len(phases) > 1:
        plot.legend(frameon=False, labelcolor=INK)
    return figure_bytes(figure)


def scatter_panels(panels: Sequence[tuple[str, str, Sequence[tuple[str, float, float]]]]) -> bytes:
    """Plot panels (x label, y label, [(name, x, y)]) side by side, as PNG; a run has one colour in all of them."""
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT + 0.4), layout="constrained")
    names = list(dict.fromkeys(name for _, _, points in panels for name, _, _ in points))
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    for index, (xlabel, ylabel, points) in enumerate(panels):
        plot = figure.add_subplot(1, len(panels), index + 1)
        _style(plot, xlabel, ylabel)
        for name, x, y in points:
            plot.scatter(x, y, color=colours[name], s=36, label=name)
    shown = [pair for plot in figure.axes for pair in zip(*plot.get_legend_handles_labels(), strict=True)]
    marks = {label: handle for handle, label in shown}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure_bytes(figure)
