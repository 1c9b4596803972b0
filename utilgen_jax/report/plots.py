"""Figures of a run, drawn by matplotlib without a display; the path's suffix (.png, .svg, ...) sets the format."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from utilgen_jax.runtime.atomic_write import replace_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette, without its yellow (too pale on white).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#8A8F98"
_PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
_DASHES = ("-", "--", ":")
_GROUP_COLOURS = (RED, BLUE, GREEN)
MOST_COLOURS = 10  # of matplotlib's own cycle, for classes
_STYLE: Any = {  # some versions of matplotlib type it by a literal of all the keys, others by str
    "axes.axisbelow": True,
    "axes.edgecolor": "#9AA0A8",
    "axes.grid": True,
    "axes.labelcolor": "#333840",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#E6E8EB",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "utilgen_jax",  # deterministic SVG output
    "text.color": "#333840",
    "xtick.color": "#5A6069",
    "ytick.color": "#5A6069",
}


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draws loss and accuracy by step, one line for each stage.

    Args:
        metrics: rows as `read_metrics` returns them. Scalars named "loss" and "accuracy", or ending in "_loss" and
            "_accuracy", are drawn; accuracies are fractions in [0, 1].
        path: the file to write.

    Returns:
        The path.

    Raises:
        ValueError: no row has a loss or an accuracy.
    """
    panels = [(kind, curves) for kind in ("loss", "accuracy") if (curves := _curves(metrics, kind))]
    if not panels:
        raise ValueError("nothing to draw: no row of the metrics has a loss or an accuracy")
    # Stages have colours and measures have dashes, the same in both panels: one legend serves both.
    keys = list(dict.fromkeys(key for _, curves in panels for key in curves))
    stages = list(dict.fromkeys(stage for stage, _ in keys))
    palette = _PALETTE if len(stages) <= len(_PALETTE) else [f"C{number}" for number in range(MOST_COLOURS)]
    measures = sorted({measure for _, measure in keys})  # plain "loss" and "accuracy" first, as a solid line
    lines: dict[str, Artist] = {}
    with _style():
        figure = _figure(4.8 * len(panels), 3.3 + 0.11 * len(keys))
        for axes, (kind, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (stage, measure), (steps, values) in curves.items():
                (line,) = axes.plot(
                    steps,
                    (100 if kind == "accuracy" else 1) * np.asarray(values),
                    _DASHES[measures.index(measure) % len(_DASHES)],
                    color=palette[stages.index(stage) % len(palette)],
                    marker="o" if len(steps) == 1 else "",
                )
                lines.setdefault(f"{stage}: {measure}" if measure else stage, line)
            axes.set(xlabel="Step", ylabel="Loss" if kind == "loss" else "Accuracy (%)")
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 * len(panels))
        return _save(figure, path)


def plot_weight_curve(losses: ArrayLike, weights: ArrayLike, path: str | os.PathLike[str]) -> Path:
    """Draws the weight of each pool sample against its loss, above a histogram of the losses.

    The weight is a function of the loss only for a single weight network on the scalar loss. With cross-fit folds or
    more features the samples scatter; the line is the mean weight in quantile bins of the loss.

    Args:
        losses: loss of each pool sample, [n].
        weights: weight of each sample in [0, 1], [n].
        path: the file to write.

    Returns:
        The path.

    Raises:
        ValueError: the arrays are empty, not one-dimensional or of different lengths.
    """
    x, y = np.asarray(losses, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(f"losses and weights must be two lists of the same length, got {x.shape} and {y.shape}")
    order = np.argsort(x, kind="stable")
    bins = np.array_split(order, min(20, x.size))
    with _style():
        figure = _figure(5.4, 3.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.scatter(x, y, s=12, color=SKY, alpha=0.6, linewidths=0, label="one sample", rasterized=True)
        upper.plot([x[b].mean() for b in bins], [y[b].mean() for b in bins], color=BLUE, label="mean by loss")
        upper.set(ylabel="Weight W(loss)", ylim=(-0.03, 1.03))
        _legend_above(upper)
        lower.hist(x, bins=40, color=GREY)
        lower.set(xlabel="Loss of the sample", ylabel="Samples")
        return _save(figure, path)


def plot_intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]],
    groups: Mapping[str, str],
    label: str,
    path: str | os.PathLike[str],
    reference: float | None = None,
) -> Path:
    """Draws means and intervals as dots with bars, in panels side by side with a shared vertical axis.

    Args:
        panels: {title: {method: (mean, low, high)}}; a panel may lack methods. None for low and high draws no bar.
        groups: {method: its group}, from top to bottom. Groups have colours; several groups have a legend.
        label: label of the horizontal axes; each panel has its own range.
        path: the file to write.
        reference: position of a vertical line; None for no line.

    Returns:
        The path.
    """
    heights = {method: -number for number, method in enumerate(groups)}
    colours = dict(zip(dict.fromkeys(groups.values()), (GREY, *_PALETTE), strict=False))
    dots: dict[str, Artist] = {}
    with _style():
        figure = _figure(1.6 + 2.4 * len(panels), 1.3 + 0.27 * len(groups))
        for axes, (title, panel) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            if reference is not None:
                axes.axvline(reference, color="#5A6069", linewidth=1, zorder=1)
            for method, (mean, low, high) in panel.items():
                colour = colours[groups[method]]
                if low is not None and high is not None:
                    axes.plot([low, high], [heights[method]] * 2, color=colour)
                (dots[groups[method]],) = axes.plot([mean], [heights[method]], "o", color=colour, markersize=5)
            axes.set_title(title, fontsize=10)
            axes.set_yticks(list(heights.values()), list(heights))
            axes.tick_params("y", length=0)
        figure.supxlabel(label, fontsize=10)
        if len(dots) > 1:
            figure.legend(dots.values(), dots.keys(), loc="outside upper center", ncols=len(dots))
        return _save(figure, path)


def plot_data_efficiency(
    panels: Mapping[str, Mapping[str, Mapping[int, tuple[float, float | None]]]],
    references: Mapping[str, Mapping[str, float]],
    labels: tuple[str, str],
    path: str | os.PathLike[str],
) -> Path:
    """Draws a quantity against the number of synthetic images, on a logarithmic axis, a panel for each title.

    Args:
        panels: {title: {method: {number of images: (mean, deviation)}}}; None for the deviation draws no bar.
        references: {title: {method: value}} of methods without synthetic images, drawn as horizontal lines.
        labels: of the horizontal and the vertical axes.
        path: the file to write.

    Returns:
        The path.
    """
    methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))
    fixed = list(dict.fromkeys(method for panel in references.values() for method in panel))
    lines: dict[str, Artist] = {}
    with _style():
        wide = min(len(panels), 4)
        high = -(-len(panels) // wide)
        figure = _figure(0.8 + 3.6 * wide, 0.6 + 3 * high + 0.2 * len(methods + fixed) / wide)
        grid = figure.subplots(high, wide, squeeze=False).ravel()
        for unused in grid[len(panels) :]:
            unused.remove()
        for axes, (title, panel) in zip(grid, panels.items(), strict=False):
            for method, value in references.get(title, {}).items():
                dash = _DASHES[(fixed.index(method) + 1) % len(_DASHES)]
                lines[method] = axes.axhline(value, color=GREY, linestyle=dash, zorder=1)
            for method, points in panel.items():
                number = methods.index(method)
                numbers = sorted(points)
                means, deviations = zip(*(points[each] for each in numbers), strict=True)
                lines[method] = axes.errorbar(
                    numbers,
                    means,
                    None if None in deviations else deviations,
                    color=_PALETTE[number % len(_PALETTE)],
                    linestyle=_DASHES[number // len(_PALETTE) % len(_DASHES)],
                    marker="o",
                    markersize=4,
                    elinewidth=1,
                )[0]
            axes.set_xscale("log")
            ticks = sorted({number for points in panel.values() for number in points})
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
            axes.set_title(title, fontsize=10)
        figure.supxlabel(labels[0], fontsize=10)
        figure.supylabel(labels[1], fontsize=10)
        order = [method for method in (*fixed, *methods) if method in lines]
        figure.legend([lines[method] for method in order], order, loc="outside upper center", ncols=2 * wide)
        return _save(figure, path)


def plot_difficulty(groups: Mapping[str, ArrayLike], path: str | os.PathLike[str]) -> Path:
    """Draws the densities of the difficulty s = 1 - p(true class) of groups of images (arXiv 2411.18109, figure 2).

    Args:
        groups: {title: difficulties in [0, 1], [n]}.
        path: the file to write.

    Returns:
        The path.
    """
    edges = np.linspace(0, 1, 21)
    with _style():
        figure = _figure(5.4, 3.9)
        axes = figure.subplots()
        for number, (title, values) in enumerate(groups.items()):
            counts, _ = np.histogram(np.asarray(values, dtype=np.float64), edges)
            shares = 100 * counts / max(counts.sum(), 1)
            colour, label = _GROUP_COLOURS[number % len(_GROUP_COLOURS)], f"{title} ({counts.sum()})"
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.15)
            axes.stairs(shares, edges, color=colour, linewidth=1.8, label=label)
        axes.set(xlabel="Difficulty, 1 - p(true class)", ylabel="Share of the images (%)", xlim=(0, 1))
        _legend_above(axes)
        return _save(figure, path)


def plot_requested_difficulty(requested: ArrayLike, measured: ArrayLike, path: str | os.PathLike[str]) -> Path:
    """Draws the measured difficulty of each image against the one that was requested of the generator.

    Args:
        requested: in [0, 1], [n].
        measured: in [0, 1], [n].
        path: the file to write.

    Returns:
        The path.
    """
    x, y = np.asarray(requested, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    bins = np.array_split(np.argsort(x, kind="stable"), min(10, x.size))
    with _style():
        figure = _figure(5.4, 3.9)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], ":", color=GREY, label="as requested")
        axes.scatter(x, y, s=12, color=SKY, alpha=0.6, linewidths=0, label="one image", rasterized=True)
        axes.plot([x[b].mean() for b in bins], [y[b].mean() for b in bins], color=BLUE, label="mean")
        axes.set(xlabel="Requested difficulty", ylabel="Measured, 1 - p(true class)", xlim=(0, 1), ylim=(-0.03, 1.03))
        _legend_above(axes, columns=3)
        return _save(figure, path)


def plot_image_map(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike]],
    class_names: Sequence[str],
    explained: tuple[float, float],
    path: str | os.PathLike[str],
) -> Path:
    """Draws images as points in a plane, those of the last group larger.

    Args:
        groups: {title: (places [n, 2], labels [n])}.
        class_names: K words, which give the colours, ten at most; none: the groups do.
        explained: share of the variance along each axis.
        path: the file to write.

    Returns:
        The path.
    """
    with _style():
        figure = _figure(5.4, 4.6)
        axes = figure.subplots()
        for number, (title, (places, labels)) in enumerate(groups.items()):
            points, is_last = np.asarray(places, dtype=np.float64), number == len(groups) - 1
            parts = {f"{title} ({len(points)})": (points, _GROUP_COLOURS[-1 - number])}
            if class_names:
                of_class = [points[np.asarray(labels) == label] for label in range(len(class_names))]
                parts = {name: (own, f"C{k}") for k, (name, own) in enumerate(zip(class_names, of_class, strict=True))}
            for name, (own, colour) in parts.items():
                axes.scatter(
                    own[:, 0],
                    own[:, 1],
                    s=34 if is_last else 9,
                    color=colour,
                    label=None if class_names and not is_last else name,
                    linewidths=0,
                    alpha=0.7,
                    rasterized=True,
                )
        first, second = explained
        axes.set(xlabel=f"First component ({first:.0%} of the variance)", ylabel=f"Second component ({second:.0%})")
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        _legend_above(axes, columns=5)
        return _save(figure, path)


def plot_auc(
    values: Mapping[str, ArrayLike], is_wrong: Mapping[str, ArrayLike], label: str, path: str | os.PathLike[str]
) -> Path:
    """Draws histograms of a score for images with right and with wrong labels, a panel for each method.

    Args:
        values: {method: scores [n]}.
        is_wrong: {method: bool [n]}, whether the label of each image is wrong.
        label: label of the horizontal axis.
        path: the file to write.

    Returns:
        The path.
    """
    with _style():
        figure = _figure(4.2 * len(values), 3.4)
        for axes, (method, numbers) in zip(
            figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
        ):
            numbers, wrong = np.asarray(numbers, dtype=np.float64), np.asarray(is_wrong[method], dtype=bool)
            edges = np.linspace(min(numbers.min(), 0), max(numbers.max(), 1), 31)
            for chosen, name, colour, fill in ((~wrong, "right label", SKY, True), (wrong, "wrong label", RED, False)):
                counts, _ = np.histogram(numbers[chosen], edges)
                shares = 100 * counts / max(counts.sum(), 1)
                axes.stairs(shares, edges, fill=fill, color=colour, linewidth=1.8, label=f"{name} ({counts.sum()})")
            axes.set(xlabel=f"{label}, {method}", ylabel="Share of the images (%)")
            _legend_above(axes)
        return _save(figure, path)


def _curves(metrics: Sequence[Mapping[str, Any]], kind: str) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """Collects steps and values by (stage, prefix of the scalar's name)."""
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in metrics:
        for name, value in row.items():
            if name == kind or name.endswith("_" + kind):
                steps, values = curves.setdefault((row["stage"], name[: -len(kind)].rstrip("_")), ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context  # slow to import

    return rc_context(_STYLE)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: a notebook's backend and figures stay as they are

    return Figure(figsize=(width, height))


def _legend_above(axes: "Axes", columns: int = 2) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


def _save(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # No date in the SVG: equal figures give equal files.
    kind = target.suffix.removeprefix(".")
    with replace_file(target) as partial:
        figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return target
