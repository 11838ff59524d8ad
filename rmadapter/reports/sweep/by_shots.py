"""The few-shot protocol in a report: accuracy on all classes by the number of training images a class."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rmadapter.reports import published
from rmadapter.reports.groups import method_order
from rmadapter.reports.rows import DEVIATION, Row, Stat, seed_means
from rmadapter.reports.sweep.outcomes import SweepResults
from rmadapter.reports.tables import Table, difference, number

# In the place of a number of shots for a method without a seed, which trains nothing.
NO_SHOTS = 0


@dataclass(frozen=True)
class ShotsLine:
    """A method on one data set, or its mean over several.

    Attributes:
        method: its name.
        style: of a mean over data sets the style that they are all drawn in; None for none.
        data: names of the data sets.
        by_shots: accuracy on all classes by the number of shots, in ascending order; of a mean those that it has on all
            of its data sets.
        seeds: number of seeds that all of them have; None for a method without.
    """

    method: str
    style: str | None
    data: tuple[str, ...]
    by_shots: dict[int, Stat]
    seeds: int | None


def shots_label(shots: int) -> str:
    """What a number of shots is called in headings and files."""
    return "zero-shot" if shots == NO_SHOTS else f"{shots} shot{'s' if shots > 1 else ''}"


def shots_of(row: Row) -> int:
    """The number of shots of ``row``, ``NO_SHOTS`` for a method that has none."""
    return row.group.shots or NO_SHOTS


def lines_by_data(rows: Sequence[Row]) -> dict[str, list[ShotsLine]]:
    """For each data set a line a method."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.accuracy("all"):
            found.setdefault(row.data_name, {}).setdefault(row.group.method, []).append(row)
    return {
        data: [_line(members) for _, members in sorted(methods.items(), key=lambda item: method_order(item[0]))]
        for data, methods in found.items()
    }


def mean_lines(rows: Sequence[Row]) -> list[ShotsLine]:
    """A line a method, and style, that was run on several data sets."""
    found: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row.accuracy("all"):
            found.setdefault((row.group.method, row.group.style), []).append(row)
    lines = [_line(members) for members in found.values() if len({row.data_name for row in members}) > 1]
    return sorted(lines, key=lambda line: (line.style or "", method_order(line.method)))


def _line(rows: Sequence[Row]) -> ShotsLine:
    data = tuple(dict.fromkeys(row.group.data for row in rows))
    by_shots: dict[int, list[Row]] = {}
    for row in sorted(rows, key=shots_of):
        by_shots.setdefault(shots_of(row), []).append(row)
    stats, seeds = {}, []
    for shots, members in by_shots.items():
        if len(members) == len(data):
            each = seed_means(members, "all")
            mean = statistics.fmean(row.mean("all") for row in members)
            stats[shots] = Stat(mean, statistics.stdev(each.values()) if len(each) > 1 else None, len(each))
            seeds += [] if None in each else [len(each)]
    group = rows[0].group
    return ShotsLine(group.method, group.style, data, stats, min(seeds, default=None))


def few_shot_tables(found: SweepResults, paired: Sequence[Table]) -> list[Table]:
    """The means over the data sets, ``paired`` differences, each data set, and the published means."""
    means, each = mean_lines(found.rows), lines_by_data(found.rows)
    made = []
    if means:
        note = (
            f"Accuracy on all classes. ± is the {DEVIATION} of a seed's means over the data sets, for the seeds that "
            "all of them have."
        )
        if len({frozenset(line.data) for line in means}) > 1:
            note += " Methods are not all done on the same data sets: their means do not compare."
        made.append(_table("Mean over the data sets", means, several=True, note=note))
    papers = [(line, paper) for line in means if (paper := _published(found, line))]
    if papers:
        shown = sorted({shots for line, paper in papers for shots in line.by_shots.keys() & paper.keys()})
        rows = tuple((line.method, *(_minus(line, paper, shots) for shots in shown)) for line, paper in papers)
        headings = ("method", *map(shots_label, shown))
        made.append(Table("Mean - published mean", headings, rows, note=published.PRECISION_NOTE))
    made += paired
    made += [_table(data, lines, note="Accuracy on all classes.") for data, lines in each.items()]
    return [*made, _reference()]


def _table(title: str, lines: Sequence[ShotsLine], *, note: str, several: bool = False) -> Table:
    shown = sorted({shots for line in lines for shots in line.by_shots})
    rows = tuple(
        (
            line.method,
            *((line.style or "", str(len(line.data))) if several else ()),
            str(line.seeds or ""),
            *(str(line.by_shots.get(shots, "")) for shots in shown),
        )
        for line in lines
    )
    own = ("style", "data sets") if several else ()
    headings = ("method", *own, "seeds", *map(shots_label, shown))
    return Table(title, headings, rows, words=range(2) if several else (0,), note=note)


def _published(found: SweepResults, line: ShotsLine) -> dict[int, float]:
    """The method's published means by shots, where what was measured compares with them; else empty."""
    if found.incomparable.keys() & set(line.data):
        return {}
    return published.few_shot_mean(line.method, frozenset(line.data))


def _minus(line: ShotsLine, paper: dict[int, float], shots: int) -> str:
    stat = line.by_shots.get(shots)
    return difference(None if stat is None else stat.mean, paper.get(shots))


def _reference() -> Table:
    """The published means, so that they stand beside whatever was run."""
    shown = sorted({shots for paper in published.FEW_SHOT_MEAN.values() for shots in paper})
    rows = tuple(
        (name, *(number(paper.get(shots)) for shots in shown)) for name, paper in published.FEW_SHOT_MEAN.items()
    )
    headings = ("method", *map(shots_label, shown))
    note = f"{published.WEIGHTS}; {published.NOT_OURS} {published.PRECISION_NOTE}"
    return Table("Published: mean over the eleven data sets", headings, rows, note=note)


def shots_lines(found: SweepResults) -> Iterator[tuple[str, str, str, str, Stat, float | None, bool]]:
    """Of report.csv: method, source, data set and number of shots; measured and published; whether it has seeds."""
    for data, lines in lines_by_data(found.rows).items():
        for line in lines:
            for shots, stat in line.by_shots.items():
                yield line.method, data, data, shots_label(shots), stat, None, line.seeds is not None
    for line in mean_lines(found.rows):
        paper = _published(found, line)
        name = f"mean of {len(line.data)}" + (f"@{line.style}" if line.style else "")
        for shots, stat in line.by_shots.items():
            yield line.method, "", name, shots_label(shots), stat, paper.get(shots), line.seeds is not None
