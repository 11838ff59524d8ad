"""Names of any characters in the formats of a report."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import pytest
from fake_sweeps import fake
from matplotlib.text import Text
from PIL import Image
from run_folders import write_metrics, write_run
from test_document import Page

from rmadapter.reports import run_plots
from rmadapter.reports.document import Document
from rmadapter.reports.escape import markdown, paragraph, plot, readable
from rmadapter.reports.run_report import report
from rmadapter.reports.sweep import figures
from rmadapter.reports.sweep.outcomes import read_sweep
from rmadapter.reports.sweep.page import sweep_report

NAMES = ("$x$ & $y_", "a|b`c`<i>", "_שלום 漢字\n\x00\u202e\udcff" + 300 * "x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("emoji_food@fluent, 2.5 ± 0.1 (openai) ~/d", "emoji_food@fluent, 2.5 ± 0.1 (openai) ~/d"),
        ("a|b", r"a\|b"),
        ("`a` *b* _c_ ~~d~~ \\", r"\`a\` \*b* \_c\_ \~\~d\~\~ " + "\\\\"),
        ("$x$", r"\$x\$"),
        ("<b>&lt; AT&T", "&lt;b>&amp;lt; AT&T"),
        ("[a](b)", r"[a]\(b)"),
        ("a\nb\r\n\u2028c\x00\x1b[1m\u202ed\udcff", "a b   c\ufffd\ufffd[1m\ufffdd\ufffd"),
        ("שלום", "\u2068שלום\u2069"),
        ("👩\u200d🍳", "👩\u200d🍳"),  # a joiner is a part of an emoji
    ],
)
def test_a_name_in_markdown(text, shown):
    assert markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- a", r"\- a"),
        ("* a", r"\* a"),
        ("6.20*", "6.20*"),
        ("1. a", r"1\. a"),
        ("# a", r"\# a"),
        ("> a", r"\> a"),
        ("-1.5", "-1.5"),
        ("2.5 s", "2.5 s"),
    ],
)
def test_a_paragraph_is_no_list_and_no_heading(text, shown):
    assert paragraph(text) == shown
    assert Document("", "", (text,), [text]).markdown() == f"{shown}\n\n- {shown}\n"


def test_a_name_in_a_plot_is_no_formula_and_not_hidden():
    assert plot("$x$") == r"\$x\$"
    assert plot("_a") == " _a"
    assert len(plot("x" * 300)) == 60
    assert readable("a\x00\tb") == "a\ufffd b"


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        changes = {"data": name, "method": name, "model": f"local-dir:{name}", "settings": {"template": name}}
        write_metrics(write_run(tmp_path / "runs" / str(number), {"base": 90.0}, **changes))
    return tmp_path / "runs"


@pytest.mark.drawn
def test_any_name_is_drawn_without_a_warning(tmp_path):
    """What matplotlib takes for a formula is an error in it, or letters that are not there."""
    for number, name in enumerate((r"$\frac$", "漢字 $x", NAMES[-1])):
        folder = write_run(tmp_path / "runs" / str(number), {"base": 90.0, "new": 60.0}, data="d", method=name)
        write_metrics(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report([tmp_path / "runs"], tmp_path / "out")
    for path in found.files[2:]:
        with Image.open(path) as image:
            assert max(image.size) < 4000


def test_every_name_of_a_report_goes_through_its_format(nasty, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run_plots, "save_figure", lambda figure, path: (drawn.append(texts(figure)), path)[1])
    found = report([nasty], tmp_path / "out")
    whole = "\n".join(drawn)
    for name in NAMES:
        assert f"| {markdown(name)} " in found.text
        assert plot(name) in whole
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "\x00" not in text + found.text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(NAMES)
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    with (tmp_path / "out" / "report.csv").open(newline="", encoding="utf-8") as file:
        assert {row["data"] for row in csv.DictReader(file)} == set(map(readable, NAMES))


def test_every_name_of_a_sweep_goes_through_its_format(tmp_path, monkeypatch):
    folder = fake(tmp_path / "s", "base2new", ["dtd"], ["zeroshot", "mma"])
    names = {"zeroshot": NAMES[0], "mma": NAMES[1]}
    data = "$data$ <b>|"
    for file in (folder / "runs").rglob("results.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "method": names[values["method"]], "data": data}))
    text = sweep_report(folder, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    drawn = {}
    for module in (figures, run_plots):
        monkeypatch.setattr(
            module, "save_figure", lambda figure, path: (drawn.update({path.stem: texts(figure)}), path)[1]
        )
    figures.draw(read_sweep(folder), tmp_path / "out")
    assert f"## {markdown(data)}\n" in text
    assert data in page.texts("h2")
    assert plot(data) in drawn["base_new"]
    assert plot(data) in drawn["data_sets"]
    for name in names.values():
        assert f"| {markdown(name)} " in text
        assert name in page.texts("td")
        assert all(plot(name) in one for one in drawn.values())
