"""Plots of a sweep: base against new, bars a data set, the ablation, what a method costs. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rmadapter.reports.escape import plot
from rmadapter.reports.groups import method_order
from rmadapter.reports.rows import DEVIATION, Row, Stat
from rmadapter.reports.run_plots import MARKERS, draw_base_new, method_colours, save_figure
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow
from rmadapter.reports.sweep.shots_figure import draw_shots
from rmadapter.sweeps.protocols import FEW_SHOT

# Beyond this many data sets the page shows base against new for their mean alone.
FEW = 3
# Inches; bars that need more go on in another file.
HIGHEST = 50


@dataclass(frozen=True)
class _Bar:
    """One bar: of ``method`` on ``data``."""

    method: str
    data: str
    stat: Stat


def draw(found: SweepResults, out: Path) -> list[Path]:
    """The plots that the sweep's protocol has, as PNG files in ``out``."""
    if found.protocol == FEW_SHOT:
        return draw_shots(found, out)
    files: list[Path | None] = []
    if found.rows:
        # The ablation's many methods are drawn for the mean alone, where there is one.
        limit = 1 if found.protocol == "ablation" else FEW
        few = found.rows if len({row.data_name for row in found.rows}) <= limit else ()
        files.append(draw_base_new(few, found.means, out))
    title, bars = _bars_of(found)
    files += [save_figure(_data_sets(page, title), out / name) for name, page in _pages(bars)]
    if found.protocol == "ablation" and (figure := _ablation(found.rows)) is not None:
        files.append(save_figure(figure, out / "ablation.png"))
    points = _costs(found)
    if points:
        files.append(save_figure(_cost(points, bool(found.rows)), out / "cost.png"))
    return [file for file in files if file is not None]


def _bars_of(found: SweepResults) -> tuple[str, list[_Bar]]:
    """What the bars show, and the bars: one quantity for all, so that methods without it have none."""
    if found.rows:
        part = "hm" if any(row.accuracy("hm") for row in found.rows) else "base"
        title = {"hm": "harmonic mean of base and new", "base": "accuracy on base classes"}[part]
        parts = [(row, row.accuracy(part)) for row in found.rows]
        return title, [_Bar(row.group.method, row.data_name, stat) for row, stat in parts if stat is not None]
    title = "accuracy on all classes"
    if len({row.source for row in found.transfers}) > 1:
        return title, [_Bar(row.method, f"{row.source} to others", row.mean) for row in found.transfers if row.mean]
    return title, [_Bar(row.method, data, stat) for row in found.transfers for data, stat in row.by_data.items()]


def _pages(bars: Sequence[_Bar]) -> Iterator[tuple[str, list[_Bar]]]:
    """What goes into one file each: data_sets.png, or the data sets in equal parts that ``HIGHEST`` has room for."""
    data = list(dict.fromkeys(bar.data for bar in bars))
    room = max(1, int(HIGHEST / _height(bars)))
    count = math.ceil(len(data) / room)
    for number in range(count):
        chosen = set(data[number * len(data) // count : (number + 1) * len(data) // count])
        yield f"data_sets{f'-{number + 1:03}' if count > 1 else ''}.png", [bar for bar in bars if bar.data in chosen]


def _height(bars: Sequence[_Bar]) -> float:
    """Inches that a data set takes."""
    return 0.3 + 0.22 * len({bar.method for bar in bars})


def _data_sets(bars: Sequence[_Bar], title: str) -> Figure:
    """Horizontal bars from 0, a group a data set, whiskers a standard deviation over seeds."""
    data = list(dict.fromkeys(bar.data for bar in bars))
    methods = sorted({bar.method for bar in bars}, key=method_order)
    colours = method_colours(set(methods))
    figure = Figure(figsize=(9, 1.2 + len(data) * _height(bars)), layout="constrained")
    axes = figure.subplots()
    height = 0.85 / len(methods)
    for bar in bars:
        place = data.index(bar.data) + (methods.index(bar.method) - (len(methods) - 1) / 2) * height
        axes.barh(place, bar.stat.mean, 0.92 * height, color=colours[bar.method])
        if bar.stat.sd:
            axes.errorbar(bar.stat.mean, place, xerr=bar.stat.sd, color="#333333", capsize=2, linewidth=1)
        axes.annotate(
            f"{bar.stat.mean:.1f}",
            (bar.stat.mean + (bar.stat.sd or 0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(data)), [plot(name) for name in data])
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xticks=range(0, 101, 20), xlabel=f"{title}, %")
    if any(bar.stat.sd for bar in bars):
        axes.set_title(f"mean and {DEVIATION}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, methods, colours)
    return figure


def _ablation(rows: Sequence[Row]) -> Figure | None:
    """For each method the mean over data sets of base, new and HM, over the data sets that all methods have."""
    by_method: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.accuracy("hm"):
            by_method.setdefault(row.group.method, {})[row.data_name] = row
    if not by_method:
        return None
    shared = set.intersection(*(set(members) for members in by_method.values()))
    if not shared:
        return None
    methods = sorted(by_method, key=method_order)
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(methods)), layout="constrained")
    axes = figure.subplots()
    marks = {"base": ("s", "#D55E00"), "new": ("D", "#0072B2"), "hm": ("o", "#000000")}
    for place, method in enumerate(methods):
        values = {part: sum(by_method[method][name].mean(part) for name in shared) / len(shared) for part in marks}
        axes.plot([values["base"], values["new"]], [place, place], color="#cccccc", linewidth=3, zorder=1)
        for part, (marker, colour) in marks.items():
            axes.scatter(values[part], place, s=46, marker=marker, color=colour, zorder=2)
        axes.annotate(
            f"{values['hm']:.2f}",
            (values["hm"], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(methods)), [plot(name) for name in methods])
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy, %, mean of {len(shared)} data set{'s' if len(shared) > 1 else ''}")
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    names = {"base": "base", "new": "new", "hm": "HM"}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=names[part])
        for part, (marker, colour) in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


@dataclass(frozen=True)
class _Point:
    """A method's cost and what it reaches, over the data sets it has."""

    method: str
    parameters: int
    seconds: float | None
    percent: float


def _costs(found: SweepResults) -> list[_Point]:
    points: list[_Point] = []
    by_method: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.accuracy("hm"):
            by_method.setdefault(row.group.method, []).append(row)
    for method, rows in by_method.items():
        seconds = [stat.mean for row in rows if (stat := row.seconds("train"))]
        percent = sum(row.mean("hm") for row in rows) / len(rows)
        mean_seconds = sum(seconds) / len(seconds) if seconds else None
        points.append(_Point(method, rows[0].trained_parameters or 0, mean_seconds, percent))
    transfers: dict[str, list[TransferRow]] = {}
    for transfer in found.transfers:
        if transfer.mean is not None and transfer.parameters is not None:
            transfers.setdefault(transfer.method, []).append(transfer)
    for method, members in transfers.items():
        known = [transfer.seconds for transfer in members if transfer.seconds is not None]
        percent = sum(transfer.mean.mean for transfer in members if transfer.mean) / len(members)
        points.append(_Point(method, members[0].parameters or 0, sum(known) / len(known) if known else None, percent))
    return points


def _cost(points: Sequence[_Point], has_halves: bool) -> Figure:
    """Two panels: trained parameters and seconds of training against accuracy; zero-shot is a line, it costs none."""
    methods = sorted({point.method for point in points}, key=method_order)
    colours = method_colours(set(methods))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label, value in (
        (left, "trained parameters", lambda point: point.parameters),
        (right, "seconds of training a run", lambda point: point.seconds),
    ):
        for point in points:
            cost = value(point)
            marker = MARKERS[methods.index(point.method) % len(MARKERS)]
            if cost:
                axes.scatter(cost, point.percent, s=80, marker=marker, color=colours[point.method], zorder=2)
            else:
                axes.axhline(point.percent, color=colours[point.method], linestyle="--", linewidth=1)
        if any(value(point) for point in points):
            axes.set_xscale("log")
        axes.set(xlabel=label)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("mean HM, %" if has_halves else "mean accuracy on the others, %")
    _legend(figure, methods, colours, {method: MARKERS[n % len(MARKERS)] for n, method in enumerate(methods)})
    return figure


def _legend(
    figure: Figure, methods: Sequence[str], colours: dict[str, str], markers: dict[str, str] | None = None
) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=colours[method],
            marker=(markers or {}).get(method, "s"),
            markersize=8,
            linestyle="none",
            label=plot(method),
        )
        for method in methods
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
