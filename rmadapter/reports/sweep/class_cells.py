"""What a sweep's runs answered class by class, as cells of classes x draws for ``reports.crossed``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmadapter.reports.crossed import Cell, Compared
from rmadapter.reports.finished_runs import RETAINED, FinishedRun
from rmadapter.reports.paired import Key, pairs
from rmadapter.reports.rows import Row
from rmadapter.reports.sweep.by_shots import NO_SHOTS, shots_label, shots_of
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow
from rmadapter.sweeps.protocols import FEW_SHOT, data_and_style

HOME, OTHERS = "trained on", "mean of the others"


@dataclass(frozen=True)
class ByClass:
    """One run on one or more lists of classes.

    Attributes:
        trained_on: the data set, with its style: runs on another one have draws of their own.
        lists: accuracy of each class in percent, by the name of its list.
        harmonic: see ``Cell``.
    """

    trained_on: str
    lists: Mapping[str, Mapping[str, float]]
    harmonic: bool = False


ClassValues = dict[str, dict[str, dict[Key, ByClass]]]  # method -> part -> run


def class_values(found: SweepResults) -> ClassValues:
    """All that is recorded; the parts are those of ``differences``."""
    values: ClassValues = {}
    if found.transfers:
        several = len({row.source for row in found.transfers}) > 1
        for row in found.transfers:
            for part, key, by_class in _several(row) if several else _one_source(row):
                values.setdefault(row.method, {}).setdefault(part, {})[key] = by_class
        return values
    if found.protocol == FEW_SHOT:
        return _few_shot(found.rows)
    for line in found.rows:
        for run in line.runs:
            for part, by_class in _base_new(line.group.data, line.group.style, run):
                key = Key(line.group.data, line.group.style, run.seed)
                values.setdefault(line.group.method, {}).setdefault(part, {})[key] = by_class
    return values


def _few_shot(rows: Sequence[Row]) -> ClassValues:
    """By number of shots; a method that has none stands against each."""
    values: ClassValues = {}
    every = sorted({shots_of(row) for row in rows} - {NO_SHOTS}) or [NO_SHOTS]
    for row in rows:
        data, style = row.group.data, row.group.style
        for shots in [shots_of(row)] if shots_of(row) != NO_SHOTS else every:
            for run in row.runs:
                if "all" in run.per_class:
                    by_class = ByClass(f"{data}@{style}", {data: run.per_class["all"]})
                    parts = values.setdefault(row.group.method, {})
                    parts.setdefault(shots_label(shots), {})[Key(data, style, run.seed)] = by_class
    return values


def _base_new(data: str, style: str | None, run: FinishedRun) -> Iterator[tuple[str, ByClass]]:
    trained_on = f"{data}@{style}"
    for part in ("base", "new", *RETAINED):
        if part in run.per_class:
            yield part, ByClass(trained_on, {f"{data} {part.removeprefix('retained_')}": run.per_class[part]})
    if {"base", "new"} <= run.per_class.keys():
        lists = {f"{data} {part}": run.per_class[part] for part in ("base", "new")}
        yield "hm", ByClass(trained_on, lists, harmonic=True)


def _one_source(row: TransferRow) -> Iterator[tuple[str, Key, ByClass]]:
    for seed, found in row.per_class.items():
        for name, classes in found.items():
            yield HOME if name == row.source else OTHERS, Key(name, None, seed), ByClass(row.source, {name: classes})


def _several(row: TransferRow) -> Iterator[tuple[str, Key, ByClass]]:
    own, style = data_and_style(row.source)
    for seed, found in row.per_class.items():
        key = Key(own, style, seed)
        if row.source in found:
            yield HOME, key, ByClass(row.source, {row.source: found[row.source]})
        for target in row.targets:
            group, drawn = data_and_style(target)
            if group == own and drawn and target in found:
                yield drawn, key, ByClass(row.source, {target: found[target]})
        if found.keys() >= set(row.targets):
            yield OTHERS, key, ByClass(row.source, {name: found[name] for name in row.targets})


def cells(one: Mapping[Key, ByClass], other: Mapping[Key, ByClass], style: str | None) -> list[Cell]:
    """The pairs of both, in ``style`` or in all; without classes that are not in every run, and lists of none."""
    both = {key: found for key, found in pairs(one, other).items() if style in (None, key.style)}
    grouped: dict[tuple[str, str | None], list[Key]] = {}
    for key in both:
        grouped.setdefault((key.unit, key.style), []).append(key)
    made = []
    for (unit, _), keys in grouped.items():
        columns = [[values[both[key][number]] for key in keys] for number, values in enumerate((one, other))]
        first = columns[0][0]
        tested = []
        for name in first.lists:
            names = [
                label
                for label in first.lists[name]
                if all(label in run.lists.get(name, {}) for column in columns for run in column)
            ]
            if names:
                matrices = [
                    np.array([[run.lists[name][label] for run in column] for label in names]) for column in columns
                ]
                # Of one data set in several styles the classes are the same ones.
                tested.append(Compared((data_and_style(name)[0], *names), *matrices))
        if len(tested) == len(first.lists):
            draws = (first.trained_on, *(key.seed for key in keys))
            made.append(Cell(unit, draws, tuple(tested), first.harmonic))
    return made
