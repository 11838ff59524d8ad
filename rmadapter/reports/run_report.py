"""Tables and plots from run folders: accuracy on base and new classes, parameters, seconds."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.files import write_text
from rmadapter.reports.finished_runs import (
    PARTS,
    RETAINED,
    DataMeans,
    Group,
    Row,
    Stat,
    differing_settings,
    find_runs,
    harmonic_mean,
    make_rows,
    means_over_data,
    one_a_seed,
    short_model,
)

__all__ = ["Report", "harmonic_mean", "report"]

LEGEND = (
    "Accuracy is top-1 in percent, mean ± standard deviation over seeds; HM is the mean over seeds of each seed's "
    "harmonic mean of base and new."
)
RETENTION_LEGEND = (
    "Retained: the same classes drawn in a style that neither pretraining nor training has seen; what falls below "
    "zero-shot there has been forgotten."
)
MEANS_LEGEND = (
    "HM of means: of mean base and mean new accuracy. Mean of HMs: over the data sets, of each one's means over seeds. "
    "HM per seed: of each seed's means over the data sets. ± is the standard deviation over seeds of a seed's means "
    "over the data sets, for the seeds that all of them have."
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
    and so is a table's line whose values are none.

    Raises:
        InputError: what ``find_runs`` raises, or ``out`` cannot be written.
    """
    runs, unreadable = find_runs(folders)
    runs, repeated = one_a_seed(runs)
    rows = make_rows(runs)
    means = means_over_data(rows)
    notes = [f"Left out, a newer run has its seed: {place}" for place in repeated]
    notes += [f"Unreadable, left out: {reason}" for _, reason in unreadable]
    notes += differing_settings(runs)
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
    text = _markdown(rows, means, notes)
    files = list(plots)
    if out is not None:
        images = "".join(f"\n![{path.stem}]({path.name})\n" for path in plots)
        write_text(out / "report.md", text + images)
        write_text(out / "report.csv", _csv(rows))
        files = [out / "report.md", out / "report.csv", *plots]
        text += "\n" + "".join(f"written: {path}\n" for path in files)
    return Report(tuple(rows), tuple(means), tuple(unreadable), text, tuple(files))


# A column: its heading, whether numbers stand in it, and the cell of a row, empty where there is nothing to say.
_Column = tuple[str, bool, Callable[[Any], str]]
_HEADINGS = {"base": "base", "new": "new", "hm": "HM", "all": "all"} | {
    part: part.replace("_", " ") for part in RETAINED
}


def _markdown(rows: Sequence[Row], means: Sequence[DataMeans], notes: Sequence[str]) -> str:
    columns: list[_Column] = [
        ("method", False, lambda row: row.group.method),
        ("data", False, lambda row: row.group.data),
        ("style", False, lambda row: row.group.style or ""),
        ("model", False, lambda row: short_model(row.group)),
        ("classes", False, lambda row: row.group.classes),
        ("split", False, lambda row: row.group.split),
        ("shots", True, lambda row: _plain(row.group.shots)),
        ("seeds", True, lambda row: str(sum(run.seed is not None for run in row.runs) or "")),
        *((_HEADINGS[part], True, lambda row, part=part: _plain(row.accuracy(part))) for part in (*PARTS, *RETAINED)),
        ("trained parameters", True, lambda row: _plain(row.trained_parameters, ",")),
        ("training s", True, lambda row: _seconds(row.seconds("train"))),
        ("evaluation s", True, lambda row: _seconds(row.seconds("eval"))),
    ]
    blocks = [_table(columns, rows, said_once=("style", "model", "classes", "split")), LEGEND]
    if any(row.accuracy(part) for row in rows for part in RETAINED):
        blocks.append(RETENTION_LEGEND)
    if means:
        mean_columns: list[_Column] = [
            ("method", False, lambda mean: mean.group.method),
            ("style", False, lambda mean: mean.group.style or ""),
            ("model", False, lambda mean: short_model(mean.group)),
            ("classes", False, lambda mean: mean.group.classes),
            ("split", False, lambda mean: mean.group.split),
            ("shots", True, lambda mean: _plain(mean.group.shots)),
            ("data sets", True, lambda mean: str(len(mean.data))),
            ("seeds", True, lambda mean: _plain(mean.seeds)),
            ("base", True, lambda mean: mean.text("base")),
            ("new", True, lambda mean: mean.text("new")),
            ("HM of means", True, lambda mean: _plain(mean.hm_of_means, ".2f")),
            ("mean of HMs", True, lambda mean: _plain(mean.mean_of_hms, ".2f")),
            ("HM per seed", True, lambda mean: _plain(mean.per_seed.get("hm"))),
            *((_HEADINGS[part], True, lambda mean, part=part: mean.text(part)) for part in RETAINED),
        ]
        blocks += [_table(mean_columns, means, said_once=("style", "model", "classes", "split")), MEANS_LEGEND]
        if len({mean.data for mean in means}) > 1:
            blocks.append("These methods were not run on the same data sets: their means do not compare.")
    if notes:
        blocks.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _plain(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form) if form else str(value)


def _seconds(value: Stat | None) -> str:
    return "" if value is None else f"{value.mean:.1f}"


def _table(columns: Sequence[_Column], items: Sequence[Any], said_once: Sequence[str]) -> str:
    """An aligned Markdown table without empty columns; those of ``said_once`` with one value stand above it."""
    above, shown = [], []
    for heading, is_number, cell in columns:
        cells = [cell(item) for item in items]
        if heading in said_once and len(set(cells)) == 1 and cells[0]:
            above.append(f"{heading}: {cells[0]}")
        elif any(cells):
            width = max(map(len, [heading, *cells, "--:"]))
            align = str.rjust if is_number else str.ljust
            rule = "-" * (width - 1) + ":" if is_number else "-" * width
            shown.append([align(heading, width), rule, *(align(text, width) for text in cells)])
    lines = ["| " + " | ".join(parts) + " |" for parts in zip(*shown, strict=True)]
    return ("; ".join(above) + "\n\n" if above else "") + "\n".join(lines)


def _csv(rows: Sequence[Row]) -> str:
    """One line a row, full precision, empty where unknown; ``hm_mean`` is the mean of the seeds' harmonic means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    statistics_of = [f"{part}_{what}" for part in (*PARTS, *RETAINED) for what in ("mean", "sd")]
    others = ("hm_of_means", "trained_parameters", "train_seconds", "eval_seconds")
    writer.writerow([*Group._fields, "seeds", *statistics_of, *others])
    for row in rows:
        found = [row.accuracy(part) for part in (*PARTS, *RETAINED)]
        numbers = [value for stat in found for value in ((stat.mean, stat.sd) if stat else (None, None))]
        seconds = [stat and stat.mean for stat in (row.seconds("train"), row.seconds("eval"))]
        writer.writerow([*row.group, len(row.runs), *numbers, row.hm_of_means, row.trained_parameters, *seconds])
    return text.getvalue()
