"""The plot of the few-shot protocol: accuracy over the number of training images a class. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from rmadapter.reports.escape import plot
from rmadapter.reports.groups import method_order
from rmadapter.reports.run_plots import MARKERS, method_colours, save_figure
from rmadapter.reports.sweep.by_shots import NO_SHOTS, ShotsLine, lines_by_data, mean_lines
from rmadapter.reports.sweep.outcomes import SweepResults

# Panels in one file, and in one row of it.
MOST, COLUMNS = 24, 4
Panel = tuple[str, list[ShotsLine]]


def draw_shots(found: SweepResults, out: Path) -> list[Path]:
    """shots.png in ``out``, or shots-001.png and so on: the means over the data sets, then each data set."""
    panels = [*_mean_panels(found), *lines_by_data(found.rows).items()]
    methods = sorted({line.method for _, lines in panels for line in lines}, key=method_order)
    files = []
    for start in range(0, len(panels), MOST):
        name = f"shots{f'-{start // MOST + 1:03}' if len(panels) > MOST else ''}.png"
        files.append(save_figure(_figure(panels[start : start + MOST], methods), out / name))
    return files


def _mean_panels(found: SweepResults) -> Iterator[Panel]:
    means = mean_lines(found.rows)
    for style in dict.fromkeys(line.style for line in means):
        drawn = f" drawn by {style}" if style else ""
        yield f"mean over the data sets{drawn}", [line for line in means if line.style == style]


def _figure(panels: Sequence[Panel], methods: Sequence[str]) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(4.5, 3.4 * columns), 2.9 * rows + 1.1), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    colours = method_colours(set(methods))
    markers = {method: MARKERS[number % len(MARKERS)] for number, method in enumerate(methods)}
    for axes, (title, lines) in zip(grid, panels, strict=False):
        for line in lines:
            _curve(axes, line, colours[line.method], markers[line.method])
        shown = sorted({shots for line in lines for shots in line.by_shots} - {NO_SHOTS})
        if shown:
            axes.set_xscale("log", base=2)
            axes.set_xticks(shown, [str(shots) for shots in shown])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(plot(title), fontsize=10)
        axes.set(xlabel="training images a class", ylabel="accuracy, %")
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    levels = {line.method for _, lines in panels for line in lines if NO_SHOTS in line.by_shots}
    handles = [
        Line2D(
            [],
            [],
            color=colours[method],
            linestyle="--" if method in levels else "-",
            marker="" if method in levels else markers[method],
            label=plot(method),
        )
        for method in methods
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    return figure


def _curve(axes: Axes, line: ShotsLine, colour: str, marker: str) -> None:
    """One method: a line over its numbers of shots, whiskers a standard deviation; without shots a dashed level."""
    if (level := line.by_shots.get(NO_SHOTS)) is not None:
        axes.axhline(level.mean, color=colour, linestyle="--", linewidth=1)
    points = [(shots, stat) for shots, stat in line.by_shots.items() if shots != NO_SHOTS]
    if points:
        axes.errorbar(
            [shots for shots, _ in points],
            [stat.mean for _, stat in points],
            yerr=[stat.sd or 0.0 for _, stat in points],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
        )
