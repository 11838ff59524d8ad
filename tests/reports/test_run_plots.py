"""Plots from run folders: what the axes hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import three_methods, write_metrics, write_run

from rmadapter.reports import curves as curves_of
from rmadapter.reports import run_plots as plots
from rmadapter.reports.finished_runs import find_runs
from rmadapter.reports.groups import grouped, method_order
from rmadapter.reports.rows import make_rows
from rmadapter.reports.run_report import harmonic_mean, report


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return three_methods(tmp_path / "runs")


def test_scatter_bars_and_contours_show_the_numbers(runs):
    rows = make_rows(grouped(find_runs([runs])[0], by_settings=True))
    figure = plots._base_new(plots._all_series(rows, (), plots.COLOURS))
    scatter, bars = figure.axes
    assert "base classes, %" in scatter.get_xlabel()
    assert "new classes, %" in scatter.get_ylabel()
    heights = sorted(patch.get_height() for patch in bars.patches)
    assert heights == pytest.approx(
        sorted([75, 62, harmonic_mean(75, 62), 95, 50, harmonic_mean(95, 50), 91, 63, (72 + harmonic_mean(92, 66)) / 2])
    )
    assert [label.get_text() for label in bars.get_xticklabels()] == ["base", "new", "HM"]
    offsets = [tuple(point) for marks in scatter.collections for point in marks.get_offsets().tolist()]
    assert {(75.0, 62.0), (95.0, 50.0), (91.0, 63.0), (90.0, 60.0), (92.0, 66.0)} <= set(offsets)
    assert bars.get_ylim()[0] == 0


def test_curves_show_each_run_and_no_empty_panel(runs):
    for folder in (runs / "a" / "seed1", runs / "b"):
        write_metrics(folder)
    rows = make_rows(grouped(find_runs([runs])[0], by_settings=True))
    curves, unreadable = curves_of.read_curves(rows)
    assert (len(curves), unreadable) == (2, 0)
    figure = curves_of.draw_curves({"digits": curves}, plots.COLOURS)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "whole loss",
        "cross-entropy",
        "reconstruction, summed over layers",
        "accuracy on training batches",
    ]
    whole, _, reconstruction, accuracy = (axes for axes in figure.axes if axes.get_visible())
    assert [line.get_color() for line in whole.lines] == [plots.COLOURS["single"], plots.COLOURS["rmadapter"]]
    assert len(reconstruction.lines) == 4
    assert reconstruction.get_yscale() == "log"
    assert accuracy.lines[0].get_xydata().tolist() == [[10, 60], [20, 70], [30, 80]]
    assert accuracy.get_ylabel() == "top-1, %"
    assert all(axes.get_xlabel() == "optimiser step" for axes in (whole, reconstruction, accuracy))


def test_several_shots_and_data_sets_are_told_apart_in_the_plot(runs):
    write_run(runs / "four", {"base": 80.0, "new": 60.0}, shots=4)
    write_run(runs / "dtd", {"base": 60.0, "new": 50.0}, data="dtd")
    found = report([runs])
    series = plots._all_series(found.rows, found.means, plots.method_colours(set()))
    assert list(series) == ["mean of 2 data sets, tiny", "digits, tiny", "dtd, tiny"]
    labels = {one.label: one for one in series["digits, tiny"]}
    assert list(labels) == ["zeroshot", "single, 16 shots", "rmadapter, 4 shots", "rmadapter, 16 shots"]
    four, sixteen = labels["rmadapter, 4 shots"], labels["rmadapter, 16 shots"]
    assert four.marker != sixteen.marker
    assert four.colour != sixteen.colour


def test_bars_show_retention(tmp_path):
    write_run(tmp_path / "a", {"base": 60, "new": 50, "retained_base": 30.0, "retained_new": 20.0}, style="fluent")
    found = report([tmp_path], tmp_path / "out")
    figure = plots._base_new(plots._all_series(found.rows, found.means, plots.COLOURS))
    labels = [tick.get_text() for axes in figure.axes for tick in axes.get_xticklabels()]
    assert {"retained\nbase", "retained\nnew"} <= set(labels)
    assert any("drawn by fluent" in sub.get_suptitle() for sub in figure.subfigs)


def test_colours_and_order_do_not_depend_on_what_else_is_shown():
    alone = plots.method_colours({"rmadapter"})
    together = plots.method_colours({"zeroshot", "single", "rmadapter", "rmadapter-l1"})
    assert alone["rmadapter"] == together["rmadapter"] == plots.COLOURS["rmadapter"]
    assert len(set(together.values())) == len(together)
    assert sorted(["rmadapter-l1", "rmadapter", "x", "single", "zeroshot"], key=method_order) == [
        "zeroshot",
        "single",
        "rmadapter",
        "rmadapter-l1",
        "x",
    ]
