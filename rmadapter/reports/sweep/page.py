"""``rmadapter report SWEEP``: report.md, report.csv, differences.csv, plots, and report.html, one page with all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rmadapter.files import write_csv, write_text
from rmadapter.reports.document import Document, Picture
from rmadapter.reports.escape import csv_lines
from rmadapter.reports.groups import model_label
from rmadapter.reports.report_folder import MEASURE, SWEEP_FILES, earlier_report, remove_left
from rmadapter.reports.rows import DEVIATION, DEVIATION_NOTE, inferences
from rmadapter.reports.run_report import LEGEND
from rmadapter.reports.sweep.differences import DIFFERENCE_HEADINGS, difference_lines, differences
from rmadapter.reports.sweep.outcomes import SweepResults, read_sweep
from rmadapter.reports.sweep.paper_tables import RESULT_HEADINGS, differs_from_setting, result_lines, tables
from rmadapter.sweeps.manifest import MANIFEST
from rmadapter.sweeps.protocols import FEW_SHOT

TITLES = {
    "base2new": "Base-to-new generalisation",
    "cross": "Cross-data-set transfer",
    "domain": "Domain generalisation",
    FEW_SHOT: "Few-shot learning",
    "ablation": "Ablation",
}
CAPTIONS = {
    "base_new": "Accuracy on base against new classes; grey lines have one harmonic mean.",
    "data_sets": f"Each data set; whiskers: {DEVIATION}.",
    "ablation": "What each part of the method gives.",
    "shots": f"Accuracy over training images a class; whiskers: {DEVIATION}; a dashed line trains nothing.",
    "cost": "What a method costs against what it reaches; a dashed line trains nothing.",
}


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` is a sweep's."""
    return (folder / MANIFEST).is_file()


def sweep_report(folder: Path, out: Path | None = None, compare: str | None = None) -> str:
    """The tables of the sweep in ``folder`` as Markdown; with ``out`` also the files there.

    ``compare`` is the method whose paired differences to the others are shown; default: RMAdapter, else the last.
    Files of an earlier report in ``out`` that this one has not are deleted.

    Raises:
        InputError: no sweep, none of its runs is done, none of ``compare``, what ``earlier_report`` raises, or ``out``
            cannot be written.
    """
    earlier = [] if out is None else earlier_report(out, SWEEP_FILES)
    found = read_sweep(folder)
    listed = differences(found, compare)
    made, notes = tables(found, listed), list(found.notes)
    if sentence := differs_from_setting(found):
        notes.append(sentence)
    plots: list[Path] = []
    if out is not None:
        try:
            from rmadapter.reports.sweep import figures
        except ImportError:
            notes.append("There are no plots: matplotlib is missing; pip install 'rmadapter[plot]'")
        else:
            plots = figures.draw(found, out)
    document = Document(TITLES[found.protocol], _lead(found), (*made, _legend(found)), notes)
    text = document.markdown()
    if out is None:
        return text
    files = [*(out / name for name in SWEEP_FILES), *plots]
    remove_left(earlier, files)
    whole = replace(document, pictures=[Picture(path, CAPTIONS[path.stem.partition("-")[0]]) for path in plots])
    write_text(out / "report.md", whole.markdown())
    write_csv(out / "report.csv", RESULT_HEADINGS, csv_lines(result_lines(found)))
    write_csv(out / "differences.csv", DIFFERENCE_HEADINGS, csv_lines(difference_lines(listed)))
    write_text(out / "report.html", whole.page())
    return text + "\n" + "".join(f"written: {path}\n" for path in files)


def _lead(found: SweepResults) -> str:
    model = model_label(str(found.settings.get("model")), found.settings.get("pretrained"))
    shots = ", ".join(map(str, found.shots)) or found.settings.get("shots")
    return f"{model}, {shots} shots; {found.done} of {found.runs} runs done"


def _legend(found: SweepResults) -> str:
    halves = found.rows and found.protocol != FEW_SHOT
    first = LEGEND if halves else f"{MEASURE}, mean ± {DEVIATION}. {DEVIATION_NOTE}"
    return " ".join([first, *inferences(found.rows)])
