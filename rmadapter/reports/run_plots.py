"""Plots from run folders: base against new accuracy, and training curves. Needs matplotlib.

Drawn on a canvas of its own, without pyplot, so that no window system and no global state of the caller's is touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from rmadapter.files import plain_name, write_atomic
from rmadapter.reports.curves import METRICS, draw_curves, read_curves
from rmadapter.reports.escape import plot
from rmadapter.reports.finished_runs import PARTS, RETAINED
from rmadapter.reports.groups import Group, context, method_order
from rmadapter.reports.rows import DEVIATION, DataMeans, Row, Stat

DPI = 130
# Data sets in one file, and inches of its width; beyond, there are more files, and marks that are closer.
FEW, WIDEST = 12, 40
# Okabe and Ito's colours, told apart under all common kinds of colour blindness; a method's does not depend on which
# others are drawn. Others take the remaining ones by name.
COLOURS = {"zeroshot": "#7f7f7f", "single": "#E69F00", "mma": "#009E73", "rmadapter": "#0072B2"}
OTHER_COLOURS = ("#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#000000")
MARKERS = "osD^vP*X"
BAR_TITLES = {"base": "base", "new": "new", "hm": "HM", "all": "all classes"} | {
    part: part.replace("_", "\n") for part in RETAINED
}


@dataclass(frozen=True)
class _Series:
    """What one legend entry stands for: ``points`` are (base, new) of single seeds, ``stats`` the means by part."""

    label: str
    colour: Any  # matplotlib takes a name or three shares
    marker: str
    points: tuple[tuple[float, float], ...]
    stats: dict[str, Stat]


def draw(rows: Sequence[Row], means: Sequence[DataMeans], out: Path) -> tuple[list[Path], int]:
    """base_new.png and curves.png in ``out``, each where there is something to draw.

    Of more than ``FEW`` data sets each has a file of its own, base_new-001-NAME.png and so on: one figure is held at a
    time.

    Returns:
        The files, and how many lines of metrics.jsonl could not be read.
    """
    colours = method_colours({row.group.method for row in rows})
    series = _all_series(rows, means, colours)
    files = [save_figure(_base_new(page), out / name) for name, page in _pages("base_new", series)]
    trained: dict[str, list[Row]] = {}
    for row in rows:
        if any(run.folder is not None and (run.folder / METRICS).is_file() for run in row.runs):
            trained.setdefault(context(row.group), []).append(row)
    unreadable = 0
    for name, page in _pages("curves", trained):
        curves = {}
        for title, members in page.items():
            curves[title], bad = read_curves(members)
            unreadable += bad
        if (figure := draw_curves(curves, colours)) is not None:
            files.append(save_figure(figure, out / name))
    return files, unreadable


def draw_base_new(rows: Sequence[Row], means: Sequence[DataMeans], out: Path) -> Path | None:
    """base_new.png in ``out``, None where no accuracy is known."""
    series = _all_series(rows, means, method_colours({item.group.method for items in (rows, means) for item in items}))
    return save_figure(_base_new(series), out / "base_new.png") if series else None


_Contents = TypeVar("_Contents")


def _pages(stem: str, contexts: Mapping[str, _Contents]) -> Iterator[tuple[str, dict[str, _Contents]]]:
    """What goes into one file each: its name, and its part of ``contexts``, which are by title."""
    if not contexts:
        return
    if len(contexts) <= FEW:
        yield f"{stem}.png", dict(contexts)
        return
    for number, (title, contents) in enumerate(contexts.items(), start=1):
        yield f"{stem}-{number:03}-{plain_name(title, 60)}.png", {title: contents}


def method_colours(methods: set[str]) -> dict[str, str]:
    """A colour a method: fixed for those of ``COLOURS``, the others by name, again from the first after the last."""
    others = sorted(methods - COLOURS.keys(), key=method_order)
    return COLOURS | {method: OTHER_COLOURS[n % len(OTHER_COLOURS)] for n, method in enumerate(others)}


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG, atomically, and empty it; returns the path."""
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # every figure here is made with it
    engine.set(w_pad=0.12, h_pad=0.08)  # inches
    with warnings.catch_warnings():
        # Letters that matplotlib's font lacks are drawn as boxes; a sentence for each helps nobody.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
    # Its parts refer to one another, so that it would stay until a late garbage collection, with all its pixels.
    figure.clear()
    FigureCanvasBase(figure)
    return path


def _labels(groups: Sequence[Group]) -> list[str]:
    """Method names, with what tells apart the rows of one method, and shots and classes where there are several."""
    several_shots = len({group.shots for group in groups} - {None}) > 1
    several_classes = len({group.classes for group in groups}) > 1
    return [
        group.method
        + (f", {group.shots} shots" if several_shots and group.shots is not None else "")
        + (f", {group.classes} classes" if several_classes else "")
        + (f", trained on {group.trained_on}" if group.trained_on else "")
        + (f", {group.settings}" if group.settings else "")
        for group in groups
    ]


def _all_series(rows: Sequence[Row], means: Sequence[DataMeans], colours: dict[str, str]) -> dict[str, list[_Series]]:
    """By title, the means over data sets first."""
    drawn: dict[str, list[tuple[Group, tuple[tuple[float, float], ...], dict[str, Stat]]]] = {}
    for mean in means:
        stats = {"base": mean.base, "new": mean.new, "hm": mean.hm_of_means, **mean.retained}
        title = context(mean.group._replace(data=f"mean of {len(mean.data)} data sets"))
        found = {part: Stat(value, None, 1) for part, value in stats.items() if value is not None}
        drawn.setdefault(title, []).append((mean.group, (), found))
    for row in rows:
        points = tuple((run.accuracy["base"], run.accuracy["new"]) for run in row.runs if "hm" in run.accuracy)
        found = {part: stat for part in (*PARTS, *RETAINED) if (stat := row.accuracy(part)) is not None}
        if found:
            drawn.setdefault(context(row.group), []).append((row.group, points, found))
    series: dict[str, list[_Series]] = {}
    for title, items in drawn.items():
        groups = [group for group, _, _ in items]
        methods = [group.method for group in groups]
        series[title] = []
        for number, (label, (group, points, found)) in enumerate(zip(_labels(groups), items, strict=True)):
            # Rows of one method, fewest shots first, differ in the mark and from light to full colour.
            earlier, later = methods[:number].count(group.method), methods[number + 1 :].count(group.method)
            colour = _lighter(colours[group.method], 0.6 * later / (1 + later))
            series[title].append(_Series(label, colour, MARKERS[earlier % len(MARKERS)], points, found))
    return series


def _lighter(colour: str, share: float) -> tuple[float, ...]:
    """``colour`` with ``share`` of white; not transparent, so that nothing behind it shows."""
    return tuple(channel + (1 - channel) * share for channel in to_rgb(colour))


def _base_new(contexts: Mapping[str, Sequence[_Series]]) -> Figure:
    """A line of two panels for each title: base against new accuracy, and bars."""
    widest = max(len(series) for series in contexts.values())
    figure = Figure(figsize=(min(11 + 0.6 * max(0, widest - 4), WIDEST), 4.6 * len(contexts)), layout="constrained")
    lines = figure.subfigures(len(contexts), 1, squeeze=False)[:, 0]
    for line, (title, series) in zip(lines, contexts.items(), strict=True):
        line.suptitle(plot(title), fontsize=12, fontweight="bold")
        if any("hm" in one.stats for one in series):
            scatter, bars = line.subplots(1, 2, width_ratios=(1, 1.5))
            _scatter(scatter, [one for one in series if "hm" in one.stats])
        else:
            bars = line.subplots()
        _bars(bars, series)
        handles = [
            Line2D([], [], color=one.colour, marker=one.marker, markersize=9, linestyle="none", label=plot(one.label))
            for one in series
        ]
        line.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    return figure


def _scatter(axes: Axes, series: Sequence[_Series]) -> None:
    """Small marks: seeds; large ones: means; grey lines: equal harmonic mean."""
    base, new = (
        [point[axis] for one in series for point in (*one.points, (one.stats["base"].mean, one.stats["new"].mean))]
        for axis in (0, 1)
    )
    limits = [_limits(values) for values in (base, new)]
    grid = np.meshgrid(*(np.linspace(*limit, 200) for limit in limits))
    total = grid[0] + grid[1]
    means = 2 * grid[0] * grid[1] / np.where(total > 0, total, 1)
    contours = axes.contour(*grid, means, levels=8, colors="#bbbbbb", linewidths=0.8, zorder=1)
    axes.clabel(contours, fmt="HM %g", fontsize=7)
    for one in series:
        if len(one.points) > 1:
            seeds_base, seeds_new = zip(*one.points, strict=True)
            axes.scatter(seeds_base, seeds_new, s=18, color=one.colour, alpha=0.5, linewidths=0, zorder=2)
        base_mean, new_mean = one.stats["base"].mean, one.stats["new"].mean
        axes.scatter(base_mean, new_mean, s=90, color=one.colour, marker=one.marker, edgecolors="white", zorder=3)
    axes.set(xlim=limits[0], ylim=limits[1], xlabel="accuracy on base classes, %", ylabel="accuracy on new classes, %")
    if any(len(one.points) > 1 for one in series):
        axes.set_title("large: mean, small: a seed", fontsize=9)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A range around ``values`` with room for the marks, at least 4 points wide, between 0 and 100.5."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 2)
    return max(0, low - room), min(100.5, high + room)


def _bars(axes: Axes, series: Sequence[_Series]) -> None:
    """Bars from 0, so that their lengths compare, with the mean above; whiskers are a standard deviation."""
    parts = [part for part in (*PARTS, *RETAINED) if any(part in one.stats for one in series)]
    width = 0.85 / len(series)
    for number, one in enumerate(series):
        known = [part for part in parts if part in one.stats]
        places = [parts.index(part) + (number - (len(series) - 1) / 2) * width for part in known]
        heights = [one.stats[part].mean for part in known]
        spread = [one.stats[part].sd or 0 for part in known]
        axes.bar(places, heights, 0.92 * width, color=one.colour)
        for place, height, sd in zip(places, heights, spread, strict=True):
            if sd:
                axes.errorbar(place, height, sd, color="#333333", capsize=2, linewidth=1)
            axes.annotate(
                f"{height:.1f}",
                (place, height + sd),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8 if len(series) <= 4 else 6,
            )
    axes.set_xticks(range(len(parts)), [BAR_TITLES[part] for part in parts])
    axes.set(ylim=(0, 108), yticks=range(0, 101, 20), ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    if any(stat.sd is not None for one in series for stat in one.stats.values()):
        axes.set_title(f"mean and {DEVIATION}", fontsize=9)
