"""Plot of accuracy against an adapter's strength. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rmadapter.reports import run_plots

# Okabe and Ito's colours; what is kept of the unseen style is dashed.
COLOURS = {"base": "#0072B2", "new": "#D55E00", "hm": "#000000", "all": "#009E73"}
RETAINED = "retained_"


def draw_strengths(accuracies: Mapping[float, Mapping[str, float]], path: Path) -> Path:
    """A line for each part of ``accuracies`` (strength -> percent by part) as PNG in ``path``, which is returned."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    strengths = sorted(accuracies)
    for part in accuracies[strengths[0]]:
        name = part.removeprefix(RETAINED)
        axes.plot(
            strengths,
            [accuracies[strength][part] for strength in strengths],
            color=COLOURS[name],
            linestyle="--" if part != name else "-",
            marker="o",
            label={"hm": "harmonic mean"}.get(part, f"retained, {name}" if part != name else name),
        )
    for strength, what in ((0.0, "zero-shot"), (1.0, "as trained")):
        if strengths[0] <= strength <= strengths[-1]:
            axes.axvline(strength, color="#bbbbbb", linewidth=0.8, zorder=0)
            axes.annotate(
                what,
                (strength, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="#666666",
            )
    axes.set(xlabel="strength", ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return run_plots.save_figure(figure, path)
