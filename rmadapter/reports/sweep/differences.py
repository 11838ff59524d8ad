"""Paired differences between the methods of a sweep: one method minus each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rmadapter.errors import check_choice
from rmadapter.reports.crossed import Crossed, crossed
from rmadapter.reports.finished_runs import RETAINED
from rmadapter.reports.groups import method_order
from rmadapter.reports.paired import LEVEL, Estimate, Key, subtract, unit_means
from rmadapter.reports.rows import Row
from rmadapter.reports.sweep.by_shots import NO_SHOTS, shots_label, shots_of
from rmadapter.reports.sweep.class_cells import HOME, OTHERS, ClassValues, cells, class_values
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow
from rmadapter.reports.tables import Table
from rmadapter.sweeps.protocols import FEW_SHOT, data_and_style

REFERENCE = "rmadapter"
HEADINGS = {"hm": "HM", "retained_base": "retained base", "retained_new": "retained new"}
DIFFERENCE_HEADINGS = (
    *("method", "minus", "style", "part", "pairs", "data_sets", "mean", "standard_error", "low", "high", "higher_in"),
    *("classes", "draws", "mean_of_classes", "low_here", "high_here"),
)
Values = dict[str, dict[str, dict[Key, float]]]  # method -> part -> run -> percent


@dataclass(frozen=True)
class Difference:
    """``one - other`` in every part that both measure; ``style`` where it is of the drawings of one style alone.

    ``here`` is the same on these data sets alone, for the parts whose accuracies are recorded class by class.
    """

    one: str
    other: str
    style: str | None
    pairs: int
    parts: dict[str, Estimate]
    here: dict[str, Crossed]


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
    by_class = class_values(found)
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
            if other != reference and (one := _difference(values, by_class, reference, other, style)):
                made.append(one)
    return made


def _difference(values: Values, by_class: ClassValues, one: str, other: str, style: str | None) -> Difference | None:
    pairs, parts, here = 0, {}, {}
    for part in values[one]:
        runs = subtract(values[one][part], values[other].get(part, {}))
        runs = {key: value for key, value in runs.items() if style in (None, key.style)}
        if runs:
            parts[part] = Estimate.of(unit_means(runs))
            pairs = max(pairs, len(runs))
        first, second = (by_class.get(method, {}).get(part, {}) for method in (one, other))
        if found := cells(first, second, style):
            here[part] = crossed(found)
    return Difference(one, other, style, pairs, parts, here) if parts else None


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


def difference_tables(found: SweepResults, listed: Sequence[Difference]) -> list[Table]:
    """Of ``differences``, for each style a table for other data sets like these and one for these alone."""
    made = []
    styles = dict.fromkeys(one.style for one in listed)
    for style in styles:
        chosen = [one for one in listed if one.style == style]
        drawn = f", drawn by {style}" if style else ""
        names = dict.fromkeys(part for one in chosen for part in one.parts)
        rows = [
            (
                _name(one),
                str(max(estimate.units for estimate in one.parts.values())),
                str(one.pairs),
                *(_cell(one.parts.get(part)) for part in names),
            )
            for one in chosen
        ]
        note = _note(found, len(styles) > 1 and style is None)
        made.append(_table(f"Paired differences{drawn}", ("data sets", "pairs"), tuple(names), rows, note))
        known = [one for one in chosen if one.here]
        rows = [
            (
                _name(one),
                str(max(part.classes for part in one.here.values())),
                str(max(part.draws for part in one.here.values())),
                *(str(one.here.get(part, "")) for part in names),
            )
            for one in known
        ]
        if rows:
            title = f"Paired differences on these data sets alone{drawn}"
            made.append(_table(title, ("classes", "draws"), tuple(names), rows, _HERE))
    return made


def _table(title: str, counts: Sequence[str], parts: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Table:
    headings = ("difference", *counts, *(HEADINGS.get(part, part) for part in parts))
    return Table(title, headings, tuple(rows), note=note)


def _name(one: Difference) -> str:
    return f"{one.one} - {one.other}"


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate} ({estimate.higher}/{estimate.units})"


_HERE = (
    f"The same differences, as means over classes, with {100 * LEVEL:g} % intervals that say what other classes and "
    "draws (beginnings and few-shot samples) would give on these data sets: a bootstrap that draws classes and draws "
    "anew, crossed, within each data set. The images of a class are no units."
)


def _note(found: SweepResults, several_styles: bool) -> str:
    unit = "data sets"
    if found.transfers:
        unit = "data sets trained on" if len({row.source for row in found.transfers}) > 1 else "data sets tested on"
    styles = " and styles" if several_styles else ""
    return (
        "Percentage points between runs with the same data and seed; a method without seeds stands against each. Mean "
        f"over {unit} of the means over seeds{styles}; in square brackets its {100 * LEVEL:g} % interval, which "
        f"takes the {unit} as units (Student's t, n - 1 degrees of freedom); in round ones, in how many of them the "
        "first method is higher."
    )


def difference_lines(listed: Sequence[Difference]) -> Iterator[tuple[object, ...]]:
    """The lines of differences.csv: one a pair of methods, style and part; a style of None means all."""
    for one in listed:
        for part, estimate in one.parts.items():
            low, high = estimate.interval or (None, None)
            numbers = (one.pairs, estimate.units, estimate.mean, estimate.error, low, high, estimate.higher)
            here = one.here.get(part)
            low, high = (here and here.interval) or (None, None)
            classes = (None,) * 3 if here is None else (here.classes, here.draws, here.mean)
            yield (one.one, one.other, one.style, part, *numbers, *classes, low, high)
