"""Paired differences between the methods of a sweep: one method minus each of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rmadapter.errors import check_choice
from rmadapter.reports.finished_runs import RETAINED
from rmadapter.reports.groups import method_order
from rmadapter.reports.paired import Estimate, Key, subtract, unit_means
from rmadapter.reports.rows import Row
from rmadapter.reports.sweep.by_shots import NO_SHOTS, shots_label, shots_of
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow
from rmadapter.reports.tables import Table
from rmadapter.sweeps.protocols import FEW_SHOT, data_and_style

REFERENCE = "rmadapter"
HEADINGS = {"hm": "HM", "retained_base": "retained base", "retained_new": "retained new"}
DIFFERENCE_HEADINGS = ("method", "minus", "style", "part", "pairs", "data_sets", "mean", "standard_error", "higher_in")
HOME, OTHERS = "trained on", "mean of the others"
Values = dict[str, dict[str, dict[Key, float]]]  # method -> part -> run -> percent


@dataclass(frozen=True)
class Difference:
    """``one - other`` in every part that both measure; ``style`` where it is of the drawings of one style alone."""

    one: str
    other: str
    style: str | None
    pairs: int
    parts: dict[str, Estimate]


def differences(found: SweepResults, reference: str | None = None) -> list[Difference]:
    """``reference`` minus every other method, over all styles and, where there are several, in each.

    ``reference`` is RMAdapter where it is in the sweep, else the last method.

    Raises:
        InputError: no run of ``reference`` is done.
    """
    if found.protocol == FEW_SHOT:
        values = _few_shot_values(found.rows)
    else:
        values = _transfer_values(found.transfers) if found.transfers else _base_new_values(found)
    methods = sorted(values, key=method_order)
    if not methods:  # results without accuracies
        return []
    if reference is None:
        reference = REFERENCE if REFERENCE in methods else methods[-1]
    check_choice("compare", reference, methods)
    keys = (key for parts in values.values() for runs in parts.values() for key in runs)
    styles = list(dict.fromkeys(key.style for key in keys))
    made = []
    # None is over all, and the style of data that has none.
    for style in dict.fromkeys((None, *styles)) if len(styles) > 1 else (None,):
        for other in methods:
            if other != reference and (one := _difference(values, reference, other, style)):
                made.append(one)
    return made


def _difference(values: Values, one: str, other: str, style: str | None) -> Difference | None:
    pairs, parts = 0, {}
    for part in values[one]:
        runs = subtract(values[one][part], values[other].get(part, {}))
        runs = {key: value for key, value in runs.items() if style in (None, key.style)}
        if runs:
            parts[part] = Estimate.of(unit_means(runs))
            pairs = max(pairs, len(runs))
    return Difference(one, other, style, pairs, parts) if parts else None


def _base_new_values(found: SweepResults) -> Values:
    values: Values = {}
    for row in found.rows:
        for run in row.runs:
            for part in ("base", "new", "hm", *RETAINED):
                if part in run.accuracy:
                    key = Key(row.group.data, row.group.style, run.seed)
                    values.setdefault(row.group.method, {}).setdefault(part, {})[key] = run.accuracy[part]
    return values


def _few_shot_values(rows: tuple[Row, ...]) -> Values:
    """By number of shots; a method that has none stands against each."""
    values: Values = {}
    every = sorted({shots_of(row) for row in rows} - {NO_SHOTS}) or [NO_SHOTS]
    for row in sorted(rows, key=shots_of):
        for shots in [shots_of(row)] if shots_of(row) != NO_SHOTS else every:
            for run in row.runs:
                if "all" in run.accuracy:
                    key = Key(row.group.data, row.group.style, run.seed)
                    values.setdefault(row.group.method, {}).setdefault(shots_label(shots), {})[key] = run.accuracy[
                        "all"
                    ]
    return values


def _transfer_values(rows: tuple[TransferRow, ...]) -> Values:
    """With one source the targets are the units, with several the sources: each with the mean over its targets."""
    values: Values = {}
    several = len({row.source for row in rows}) > 1
    for row in rows:
        for part, key, value in _several(row) if several else _one_source(row):
            values.setdefault(row.method, {}).setdefault(part, {})[key] = value
    return values


def _one_source(row: TransferRow) -> Iterator[tuple[str, Key, float]]:
    for seed, found in row.runs.items():
        for name, value in found.items():
            yield HOME if name == row.source else OTHERS, Key(name, None, seed), value


def _several(row: TransferRow) -> Iterator[tuple[str, Key, float]]:
    name, style = data_and_style(row.source)
    for seed, found in row.runs.items():
        key = Key(name, style, seed)
        if row.source in found:
            yield HOME, key, found[row.source]
        for target in row.targets:
            group, drawn = data_and_style(target)
            if group == name and drawn and target in found:  # the same classes in another style
                yield drawn, key, found[target]
        if seed in row.seed_means:
            yield OTHERS, key, row.seed_means[seed]


def difference_tables(found: SweepResults, reference: str | None = None) -> list[Table]:
    """The tables of ``differences``; none where there is one method alone."""
    made = []
    listed = differences(found, reference)
    styles = dict.fromkeys(one.style for one in listed)
    for style in styles:
        chosen = [one for one in listed if one.style == style]
        names = dict.fromkeys(part for one in chosen for part in one.parts)
        rows = [
            (
                f"{one.one} - {one.other}",
                str(max(estimate.units for estimate in one.parts.values())),
                str(one.pairs),
                *(_cell(one.parts.get(part)) for part in names),
            )
            for one in chosen
        ]
        headings = ("difference", "data sets", "pairs", *(HEADINGS.get(part, part) for part in names))
        title = "Paired differences" + (f", drawn by {style}" if style else "")
        made.append(Table(title, headings, tuple(rows), note=_note(found, len(styles) > 1 and style is None)))
    return made


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.text('+')} ({estimate.higher}/{estimate.units})"


def _note(found: SweepResults, several_styles: bool) -> str:
    unit = "data sets"
    if found.transfers:
        unit = "data sets trained on" if len({row.source for row in found.transfers}) > 1 else "data sets tested on"
    styles = " and styles" if several_styles else ""
    return (
        "Percentage points between runs with the same data and seed; a method without seeds stands against each. Mean "
        f"over {unit} of the means over seeds{styles}, ± its standard error over {unit} (n - 1); in brackets, in how "
        "many of them the first method is higher."
    )


def difference_lines(found: SweepResults, reference: str | None = None) -> Iterator[tuple[object, ...]]:
    """The lines of differences.csv: one a pair of methods, style and part; a style of None means all."""
    for one in differences(found, reference):
        for part, estimate in one.parts.items():
            numbers = (one.pairs, estimate.units, estimate.mean, estimate.error, estimate.higher)
            yield (one.one, one.other, one.style, part, *numbers)
