"""Plots from run folders: what the axes hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import three_methods, write_metrics, write_run

from rmadapter.reports import curves as curves_of
from rmadapter.reports import run_plots as plots
from rmadapter.reports.finished_runs import find_runs
from rmadapter.reports.groups import grouped, method_order
from rmadapter.reports.rows import Stat, make_rows
from rmadapter.reports.run_report import harmonic_mean, report
from rmadapter.reports.sweep import figures

SAVE = plots.save_figure  # which ``undrawn`` replaces


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


def test_plots_say_what_their_whiskers_divide_by(runs):
    figure = plots._base_new(plots._all_series(report([runs]).rows, (), plots.COLOURS))
    assert "mean and standard deviation over seeds (n - 1)" in [axes.get_title() for axes in figure.axes]
    bars = [figures._Bar("mma", "dtd", Stat.of([50.0, 60.0]))]
    assert figures._data_sets(bars, "accuracy").axes[0].get_title() == "mean and standard deviation over seeds (n - 1)"


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


def fake_data_sets(folder: Path, count: int, **changes) -> Path:
    for number in range(count):
        write_run(folder / str(number), {"base": 60.0, "new": 50.0}, data=f"set {number}", **changes)
    return folder


def test_a_dozen_data_sets_share_a_file_and_more_have_one_each(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_base_new", lambda page: drawn.append(list(page)))
    monkeypatch.setattr(plots, "draw_curves", lambda curves, colours: drawn.append(list(curves)) or "figure")
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: path)
    runs = fake_data_sets(tmp_path / "runs", 11)
    write_metrics(runs / "0")
    found = report([runs], tmp_path / "out")  # with their mean they are twelve
    assert [path.name for path in found.files[2:]] == ["base_new.png", "curves.png"]
    assert [len(page) for page in drawn] == [12, 1]
    drawn.clear()
    runs = fake_data_sets(tmp_path / "many", 120)
    for number in range(120):
        (runs / str(number) / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 1}\n')
    found = report([runs], tmp_path / "out")
    names = [path.name for path in found.files[2:]]
    assert len(set(names)) == len(names) == 121 + 120
    assert names[0] == "base_new-001-mean-of-120-data-sets-tiny.png"
    assert names[2] == "base_new-003-set-1-tiny.png"
    assert names[121] == "curves-001-set-0-tiny.png"
    assert [len(page) for page in drawn] == [1] * 241
    assert f"![{names[2][:-4]}]({names[2]})" in (tmp_path / "out" / "report.md").read_text()


def test_a_figure_of_many_rows_has_a_bounded_size():
    series = [plots._Series(f"m{number}", "black", "o", (), {"all": Stat(50.0, None, 1)}) for number in range(200)]
    figure = plots._base_new({"digits": series})
    assert max(figure.get_size_inches()) * plots.DPI < 2**13


def test_a_saved_figure_is_let_go(tmp_path):
    figure = plots.Figure(figsize=(1, 1), layout="constrained")
    figure.subplots()
    SAVE(figure, tmp_path / "a.png")
    assert figure.axes == []
    assert not hasattr(figure.canvas, "renderer")  # which has the pixels


def test_curves_without_a_number_to_draw_are_none():
    assert curves_of.draw_curves({"digits": []}, plots.COLOURS) is None


def test_the_bars_of_many_data_sets_go_on_in_another_file():
    stat = Stat(50.0, None, 1)
    bars = [figures._Bar(method, f"set {number}", stat) for number in range(120) for method in ("zeroshot", "mma")]
    pages = dict(figures._pages(bars))
    assert list(pages) == ["data_sets-001.png", "data_sets-002.png"]
    assert [bar for page in pages.values() for bar in page] == bars
    heights = [len(page) / 2 * figures._height(page) for page in pages.values()]
    assert max(heights) <= figures.HIGHEST
    assert list(dict(figures._pages(bars[:24]))) == ["data_sets.png"]
    assert list(figures._pages([])) == []
