"""Tables and plots from run folders: accuracy on base and new classes, parameters, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rmadapter.evaluation.results_file import harmonic_mean
from rmadapter.files import write_csv, write_text
from rmadapter.reports.document import Document, Picture
from rmadapter.reports.escape import csv_lines
from rmadapter.reports.finished_runs import PARTS, RETAINED, find_runs
from rmadapter.reports.groups import Group, grouped, misnamed, one_a_seed, several_contents
from rmadapter.reports.remarks import remarks
from rmadapter.reports.report_folder import MEASURE, RUN_FILES, earlier_report, remove_left
from rmadapter.reports.rows import (
    DEVIATION,
    DEVIATION_NOTE,
    DataMeans,
    Row,
    Stat,
    inferences,
    make_rows,
    means_over_data,
)
from rmadapter.reports.tables import Table, number

__all__ = ["Report", "harmonic_mean", "report"]

LEGEND = (
    f"{MEASURE}, mean ± {DEVIATION}; HM is the mean over seeds of each seed's harmonic mean of base "
    f"and new. {DEVIATION_NOTE}"
)
RETENTION_LEGEND = (
    "Retained: the same classes drawn in a style that neither pretraining nor training has seen; what falls below "
    "zero-shot there has been forgotten."
)
MEANS_LEGEND = (
    "HM of means: of mean base and mean new accuracy. Mean of HMs: over the data sets, of each one's means over seeds. "
    f"HM per seed: of each seed's means over the data sets. ± is the {DEVIATION} of a seed's means over the data sets, "
    "for the seeds that all of them have."
)

_HEADINGS = {"base": "base", "new": "new", "hm": "HM", "all": "all"} | {
    part: part.replace("_", " ") for part in RETAINED
}
_SAID_ONCE = ("style", "model", "classes", "split")
_PARTS = (*PARTS, *RETAINED)
CSV_HEADINGS = (
    *Group._fields,
    "seeds",
    *(f"{part}_{what}" for part in _PARTS for what in ("mean", "sd")),
    "hm_of_means",
    "trained_parameters",
    "train_seconds",
    "eval_seconds",
)


@dataclass(frozen=True)
class Report:
    """What was found and made of it.

    Args:
        rows: in the order of the table
        means: over the data sets, one a method with base accuracy on two or more; else empty
        unreadable: files of results that are left out and what is wrong with them, a table once a result
        text: the tables and notes in Markdown
        files: what was written
    """

    rows: tuple[Row, ...]
    means: tuple[DataMeans, ...]
    unreadable: tuple[tuple[Path, str], ...]
    text: str
    files: tuple[Path, ...]


def report(folders: Sequence[Path], out: Path | None = None) -> Report:
    """Tables of all runs in ``folders`` and below; with ``out`` also report.md, report.csv and the plots there.

    base_new.png is made where a run has an accuracy, curves.png where one has a metrics.jsonl. Without matplotlib
    there are tables and a sentence that says how to install it. A damaged results.json is listed and left out,
    and so is a table's line whose values are none. Files of an earlier report in ``out`` that this one has not are
    deleted.

    Raises:
        InputError: what ``find_runs`` and ``earlier_report`` raise, or ``out`` cannot be written.
    """
    earlier = [] if out is None else earlier_report(out, RUN_FILES)
    runs, unreadable = find_runs(folders)
    members, repeated = one_a_seed(grouped(runs, by_settings=True))
    rows = make_rows(members)
    means = means_over_data(rows)
    notes = [f"Left out, a newer run has its seed: {place}" for place in repeated]
    notes += [f"Unreadable, left out: {reason}" for _, reason in unreadable]
    notes += several_contents(runs) + misnamed(members) + remarks([member.run for member in members])
    plots: list[Path] = []
    if out is not None:
        try:
            from rmadapter.reports import run_plots as drawing
        except ImportError:
            notes.append("There are no plots: matplotlib is missing; pip install 'rmadapter[plot]'")
        else:
            plots, skipped_lines = drawing.draw(rows, means, out)
            if skipped_lines:
                notes.append(f"Unreadable lines in metrics.jsonl, left out of the curves: {skipped_lines}")
    document = Document("", "", _blocks(rows, means), notes)
    text = document.markdown()
    files = list(plots)
    if out is not None:
        files = [*(out / name for name in RUN_FILES), *plots]
        remove_left(earlier, files)
        whole = replace(document, pictures=[Picture(path) for path in plots])
        write_text(out / "report.md", whole.markdown())
        write_csv(out / "report.csv", CSV_HEADINGS, csv_lines(map(_line, rows)))
        text += "\n" + "".join(f"written: {path}\n" for path in files)
    return Report(tuple(rows), tuple(means), tuple(unreadable), text, tuple(files))


# Heading -> the cell of a row, empty where there is nothing to say.
_Columns = dict[str, Callable[[Any], str]]


def _blocks(rows: Sequence[Row], means: Sequence[DataMeans]) -> list[Table | str]:
    described: _Columns = {
        "method": lambda one: one.group.method,
        "data": lambda one: one.group.data,
        "style": lambda one: one.group.style or "",
        "model": lambda one: one.group.model_label,
        "classes": lambda one: one.group.classes,
        "split": lambda one: one.group.split,
        "trained on": lambda one: one.group.trained_on,
        "settings": lambda one: one.group.settings,
    }
    measured: _Columns = {
        "shots": lambda row: _plain(row.group.shots),
        "seeds": lambda row: str(sum(run.seed is not None for run in row.runs) or ""),
        **{_HEADINGS[part]: partial(_accuracy, part) for part in _PARTS},
        "inference": lambda row: row.inference,
        "trained parameters": lambda row: number(row.trained_parameters, ","),
        "training s": lambda row: _seconds(row.seconds("train")),
        "evaluation s": lambda row: _seconds(row.seconds("eval")),
    }
    blocks = [*_table(described, measured, rows), LEGEND]
    if any(row.accuracy(part) for row in rows for part in RETAINED):
        blocks.append(RETENTION_LEGEND)
    blocks += inferences(rows)
    if means:
        described = {heading: cell for heading, cell in described.items() if heading != "data"}
        measured = {
            "shots": lambda mean: _plain(mean.group.shots),
            "data sets": lambda mean: str(len(mean.data)),
            "seeds": lambda mean: _plain(mean.seeds),
            "base": lambda mean: mean.text("base"),
            "new": lambda mean: mean.text("new"),
            "HM of means": lambda mean: number(mean.hm_of_means),
            "mean of HMs": lambda mean: number(mean.mean_of_hms),
            "HM per seed": lambda mean: _plain(mean.per_seed.get("hm")),
            **{_HEADINGS[part]: partial(_retained, part) for part in RETAINED},
        }
        blocks += [*_table(described, measured, means), MEANS_LEGEND]
        if len({mean.data for mean in means}) > 1:
            blocks.append("These methods were not run on the same data sets: their means do not compare.")
    return blocks


def _table(words: _Columns, numbers: _Columns, items: Sequence[Any]) -> Iterator[Table | str]:
    """A line an item; the columns of ``_SAID_ONCE`` with one value stand in a sentence before the table."""
    columns = {heading: [cell(item) for item in items] for heading, cell in (words | numbers).items()}
    once = [heading for heading in _SAID_ONCE if columns[heading][0] and len(set(columns[heading])) == 1]
    if once:
        yield "; ".join(f"{heading}: {columns.pop(heading)[0]}" for heading in once)
    lines = tuple(zip(*columns.values(), strict=True))
    yield Table("", tuple(columns), lines, words=range(len(words) - len(once)))


def _accuracy(part: str, row: Row) -> str:
    return _plain(row.accuracy(part))


def _retained(part: str, mean: DataMeans) -> str:
    return mean.text(part)


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _seconds(value: Stat | None) -> str:
    return "" if value is None else f"{value.mean:.1f}"


def _line(row: Row) -> tuple[object, ...]:
    """A line of report.csv, None where unknown; ``hm_mean`` is the mean of the seeds' harmonic means."""
    found = [row.accuracy(part) for part in _PARTS]
    numbers = [value for stat in found for value in ((stat.mean, stat.sd) if stat else (None, None))]
    seconds = [stat and stat.mean for stat in (row.seconds("train"), row.seconds("eval"))]
    return (*row.group, len(row.runs), *numbers, row.hm_of_means, row.trained_parameters, *seconds)
