"""Training curves from the metrics.jsonl of run folders. Needs matplotlib."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from rmadapter.reports.escape import plot
from rmadapter.reports.groups import Group, method_order
from rmadapter.reports.rows import Row

METRICS = "metrics.jsonl"


class _Panel(NamedTuple):
    """One quantity of metrics.jsonl: keys by their name in the legend, the first drawn solid, the second dashed."""

    title: str
    unit: str
    keys: dict[str, str]
    logarithmic: bool


PANELS = (
    _Panel("whole loss", "loss", {"": "loss"}, False),
    _Panel("cross-entropy", "nats", {"": "cross_entropy"}, False),
    _Panel(
        "reconstruction, summed over layers",
        "a token, unweighted",
        {"vision": "reconstruction_vision", "text": "reconstruction_text"},
        True,
    ),
    _Panel(
        "consistency with frozen CLIP",
        "mean |difference|, unweighted",
        {"image": "consistency_image", "text": "consistency_text"},
        False,
    ),
    _Panel(
        "gradient to w_down",
        "norm",
        {"cross-entropy": "grad_norm_cross_entropy", "reconstruction": "grad_norm_reconstruction"},
        True,
    ),
    _Panel("accuracy on training batches", "top-1, %", {"": "accuracy"}, False),
)


@dataclass(frozen=True)
class Curve:
    """The ``step`` lines of one run's metrics.jsonl, numbers only."""

    group: Group
    lines: list[dict[str, float]]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of ``key``, which not every line has."""
        found = [(line["step"], line[key]) for line in self.lines if key in line]
        return [step for step, _ in found], [value for _, value in found]


def read_curves(rows: Iterable[Row]) -> tuple[list[Curve], int]:
    """One a run that has step lines; lines that are no JSON objects with a kind and a step are counted and left out."""
    curves, unreadable = [], 0
    for group, run in ((row.group, run) for row in rows for run in row.runs):
        if run.folder is None:
            continue
        file = run.folder / METRICS
        lines = []
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
            try:
                line = json.loads(text)
                if line["kind"] == "step":
                    lines.append({"step": float(line["step"])} | _finite_numbers(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                unreadable += 1
        if lines:
            curves.append(Curve(group, lines))
    return curves, unreadable


def _finite_numbers(line: dict[str, object]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def draw_curves(contexts: Mapping[str, Sequence[Curve]], colours: Mapping[str, str]) -> Figure | None:
    """A row of panels for each title, one line a run in its method's colour; None where there is nothing to draw."""
    curves = [curve for members in contexts.values() for curve in members]
    panels = [panel for panel in PANELS if any(_has_values(curve, panel) for curve in curves)]
    if not panels:
        return None
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, (2.9 * height + 0.7) * len(contexts)), layout="constrained")
    blocks = figure.subfigures(len(contexts), 1, squeeze=False)[:, 0]
    for block, (title, members) in zip(blocks, contexts.items(), strict=True):
        block.suptitle(plot(title), fontsize=12, fontweight="bold")
        grid = list(block.subplots(height, columns, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _curve_panel(axes, panel, members, colours)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        methods = sorted({curve.group.method for curve in members}, key=method_order)
        handles = [Line2D([], [], color=colours[method], label=plot(method)) for method in methods]
        block.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    return figure


def _has_values(curve: Curve, panel: _Panel) -> bool:
    """Whether there is anything but zeros to draw."""
    return any(any(curve.points(key)[1]) for key in panel.keys.values())


def _curve_panel(axes: Axes, panel: _Panel, curves: Sequence[Curve], colours: Mapping[str, str]) -> None:
    drawn = [curve for curve in curves if _has_values(curve, panel)]
    for curve in drawn:
        for dash, key in zip(("-", "--"), panel.keys.values(), strict=False):
            steps, values = curve.points(key)
            if any(values):
                axes.plot(steps, values, dash, color=colours[curve.group.method], linewidth=1.1, alpha=0.75)
    if panel.logarithmic and drawn:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(panel.keys) > 1:
        dashes: tuple[Literal["-", "--"], ...] = ("-", "--")
        pairs = zip(dashes, panel.keys, strict=True)
        handles = [Line2D([], [], color="#333333", linestyle=dash, label=name) for dash, name in pairs]
        axes.legend(handles=handles, fontsize=8, frameon=False)
    axes.set_title(panel.title, fontsize=10)
    axes.set(xlabel="optimiser step", ylabel=panel.unit)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
