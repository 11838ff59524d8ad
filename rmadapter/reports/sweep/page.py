"""``rmadapter report SWEEP``: report.md, report.csv, differences.csv, plots, and report.html, one page with all."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from rmadapter.files import write_text
from rmadapter.reports.finished_runs import model_label
from rmadapter.reports.run_report import LEGEND
from rmadapter.reports.sweep.differences import differences_csv
from rmadapter.reports.sweep.outcomes import SweepResults, read_sweep
from rmadapter.reports.sweep.paper_tables import differs_from_setting, tables, to_csv
from rmadapter.reports.tables import Table
from rmadapter.sweeps.manifest import MANIFEST

TITLES = {
    "base2new": "Base-to-new generalisation",
    "cross": "Cross-data-set transfer",
    "domain": "Domain generalisation",
    "ablation": "Ablation",
}
CAPTIONS = {
    "base_new": "Accuracy on base against new classes; grey lines have one harmonic mean.",
    "data_sets": "Each data set.",
    "ablation": "What each part of the method gives.",
    "cost": "What a method costs against what it reaches; a dashed line trains nothing.",
}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 86rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th { border-bottom: 2px solid #999; } .number { text-align: right; }
figure { margin: 2rem 0; } img { max-width: 100%; height: auto; } figcaption, p { max-width: 60rem; color: #444; }
"""


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` is a sweep's."""
    return (folder / MANIFEST).is_file()


def sweep_report(folder: Path, out: Path | None = None, compare: str | None = None) -> str:
    """The tables of the sweep in ``folder`` as Markdown; with ``out`` also the files there.

    ``compare`` is the method whose paired differences to the others are shown; default: RMAdapter, else the last.

    Raises:
        InputError: no sweep, none of its runs is done, none of ``compare``, or ``out`` cannot be written.
    """
    found = read_sweep(folder)
    made, notes = tables(found, compare), list(found.notes)
    if sentence := differs_from_setting(found.settings):
        notes.append(sentence)
    text = _markdown(found, made, notes)
    if out is None:
        return text
    plots: list[Path] = []
    try:
        from rmadapter.reports.sweep import figures as sweep_plots
    except ImportError:
        notes.append("There are no plots: matplotlib is missing; pip install 'rmadapter[plot]'")
        text = _markdown(found, made, notes)
    else:
        plots = sweep_plots.draw(found, out)
    write_text(out / "report.md", text + "".join(f"\n![{path.stem}]({path.name})\n" for path in plots))
    write_text(out / "report.csv", to_csv(found))
    names = ("report.md", "report.csv", "differences.csv", "report.html")
    write_text(out / "differences.csv", differences_csv(found, compare))
    write_text(out / "report.html", _page(found, made, notes, plots))
    files = [out / name for name in names] + plots
    return text + "\n" + "".join(f"written: {path}\n" for path in files)


def _heading(found: SweepResults) -> str:
    model = model_label(str(found.settings.get("model")), found.settings.get("pretrained"))
    return f"{model}, {found.settings.get('shots')} shots; {found.done} of {found.runs} runs done"


def _markdown(found: SweepResults, made: Sequence[Table], notes: Sequence[str]) -> str:
    blocks = [f"# {TITLES[found.protocol]}", _heading(found), *(table.markdown() for table in made), _legend(found)]
    if notes:
        blocks.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _legend(found: SweepResults) -> str:
    return LEGEND if found.rows else "Accuracy is top-1 in percent, mean ± standard deviation over seeds."


def _page(found: SweepResults, made: Sequence[Table], notes: Sequence[str], plots: Sequence[Path]) -> str:
    """The page: no script, nothing fetched from elsewhere, pictures inside."""
    title = html.escape(TITLES[found.protocol])
    figures = ""
    for path in plots:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(CAPTIONS[path.stem])
        figures += f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>\n"
        figures += f"<figcaption>{caption}</figcaption></figure>\n"
    listed = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes)
    first, *others = [table.html() for table in made]
    return (
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<title>{title}</title>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n<p>{html.escape(_heading(found))}</p>\n"
        + (f"<ul>\n{listed}</ul>\n" if notes else "")
        + first
        + figures
        + "".join(others)
        + f"<p>{html.escape(_legend(found))}</p>\n</body>\n</html>\n"
    )
