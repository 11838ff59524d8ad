"""What the runs of a sweep have left in its folder so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError
from rmadapter.reports import published
from rmadapter.reports.finished_runs import FinishedRun, read_run
from rmadapter.reports.groups import differing_settings, grouped, method_order, misnamed, several_contents
from rmadapter.reports.remarks import remarks
from rmadapter.reports.rows import DataMeans, Row, Stat, make_rows, means_over_data
from rmadapter.sweeps.manifest import LISTS, SHOTS, read_manifest
from rmadapter.sweeps.progress import failure, find_result, results_there, state
from rmadapter.sweeps.protocols import TRANSFERS, PlannedRun, short_name
from rmadapter.sweeps.settings import Sweep


@dataclass(frozen=True)
class TransferRow:
    """A method trained on one source.

    Attributes:
        runs: seed -> data set -> accuracy on all its classes; the source and the targets, as far as they are done.
        per_class: seed -> data set -> class -> accuracy, of those of ``runs`` that record it.
        targets: the data sets that it is tested on.
        retained: on the source, where it measures retention.
    """

    method: str
    source: str
    runs: dict[int | None, dict[str, float]]
    per_class: dict[int | None, dict[str, dict[str, float]]]
    targets: tuple[str, ...]
    retained: Stat | None
    parameters: int | None
    seconds: float | None

    @property
    def by_data(self) -> dict[str, Stat]:
        """Accuracy by data set, over seeds."""
        names = dict.fromkeys(name for found in self.runs.values() for name in found)
        stats = {name: Stat.of(found[name] for found in self.runs.values() if name in found) for name in names}
        return {name: stat for name, stat in stats.items() if stat is not None}

    @property
    def seed_means(self) -> dict[int | None, float]:
        """The mean over the targets, for the seeds that have all of them."""
        whole = {seed: found for seed, found in self.runs.items() if found.keys() >= set(self.targets)}
        return {seed: statistics.fmean(found[name] for name in self.targets) for seed, found in whole.items()}

    @property
    def mean(self) -> Stat | None:
        """Of the seeds' means over the targets."""
        return Stat.of(self.seed_means.values())


@dataclass(frozen=True)
class SweepResults:
    """What a sweep has found so far.

    Attributes:
        protocol, settings, shots: of its manifest; shots of the few-shot protocol alone.
        rows: one a method, data set and number of shots; empty for transfers.
        means: base to new; empty for transfers and few-shot.
        transfers: cross and domain; empty otherwise.
        runs: number of runs of the sweep; done: of those with all results.
        incomparable: data set -> why its accuracies do not compare with published ones.
        notes: sentences on what is missing, failed or does not compare.
    """

    protocol: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    means: tuple[DataMeans, ...]
    transfers: tuple[TransferRow, ...]
    runs: int
    done: int
    incomparable: dict[str, str]
    notes: tuple[str, ...]
    shots: tuple[int, ...] = ()


def read_sweep(out: Path) -> SweepResults:
    """Everything that the runs of the sweep in ``out`` have left so far.

    Raises:
        InputError: no sweep there, one of another version, or none of its runs has a result.
    """
    manifest = read_manifest(out)
    lists: dict[str, Any] = {name: tuple(manifest.get(name, ())) for name in (*LISTS, SHOTS)}
    sweep = Sweep(manifest["protocol"], **lists, options=(), data_root=None, out=out)
    found, notes = state(sweep), []
    notes += [f"Failed: {run.key}: {failure(sweep, run)}" for run in found.failed]
    left = len(found.running) + len(found.open)
    if left:
        notes.append(f"{left} of {len(sweep.runs())} runs are not done; means are over those that are.")
    rows: list[Row] = []
    transfers: list[TransferRow] = []
    planned = sweep.runs() if sweep.protocol in TRANSFERS else found.done
    read = [one for run in planned for one in _read(sweep, run, notes)]
    # Settings that differ within a row are said: the plan, not they, tells a sweep's rows apart.
    members = grouped([result for _, _, result in read], by_settings=False)
    if sweep.protocol in TRANSFERS:
        transfers = _transfers(
            [
                # A short name, and what tells its data set from others of that name.
                _Tested(run, on, on + member.group.data.removeprefix(member.run.data.name), member.run)
                for (run, on, _), member in zip(read, members, strict=True)
            ]
        )
        by_data = [(on, result) for _, on, result in read]
    else:
        rows = make_rows(members)
        by_data = [(member.group.data, member.run) for member in members]
    if not rows and not transfers:
        raise InputError(f"no run of the sweep in {out} has a result yet" + "".join(f"; {note}" for note in notes))
    means = means_over_data(rows)
    if len({mean.data for mean in means}) > 1:
        notes.append("Methods are not all done on the same data sets: their means do not compare.")
    notes += _unplanned(sweep) + _several_splits(by_data)
    notes += several_contents(run for _, run in by_data)
    notes += differing_settings(members) + misnamed(members)
    notes += remarks([result for _, result in by_data])
    incomparable = {
        name: why for name, run in by_data if (why := published.obstacle(name, run.split_file, run.images)) is not None
    }
    if incomparable:
        listed = "; ".join(f"{name} ({why})" for name, why in incomparable.items())
        notes.append(f"Not held against published numbers: {listed}.")
    settings = manifest["settings"]
    return SweepResults(
        sweep.protocol,
        settings,
        tuple(rows),
        tuple(means),
        tuple(transfers),
        len(sweep.runs()),
        len(found.done),
        incomparable,
        tuple(notes),
        sweep.shots,
    )


def _unplanned(sweep: Sweep) -> list[str]:
    """A sentence where the table has results that are none of the sweep's, such as lines of another sweep's table."""
    planned = {(run.key, on) for run in sweep.runs() for on in (None, *map(short_name, run.targets))}
    others = [line for line in sweep.table.lines() if (line.run, line.on) not in planned]
    if not others:
        return []
    return [
        f"Left out, since they are not in the sweep's plan: {len(others)} lines of {sweep.table.path.name}, such as "
        f"line {others[0].line}, {others[0].name}."
    ]


def _several_splits(by_data: Sequence[tuple[str, FinishedRun]]) -> list[str]:
    """A sentence for each data set whose runs are of more than one split."""
    splits: dict[str, dict[str | None, None]] = {}
    for name, run in by_data:
        splits.setdefault(name, {})[run.split_file] = None
    return [
        f"The runs on {name} are of several splits and do not compare: {'; '.join(str(split) for split in found)}."
        for name, found in splits.items()
        if len(found) > 1
    ]


def _read(sweep: Sweep, run: PlannedRun, notes: list[str]) -> Iterator[tuple[PlannedRun, str, FinishedRun]]:
    """The results of ``run`` by the short name of the data set tested on; a note for one that cannot be read.

    Of a transfer those on all classes, of the source and the targets.
    """
    transfer = sweep.protocol in TRANSFERS
    for on in results_there(sweep, run) if transfer else [None]:
        found = find_result(sweep, run, on)
        if found is None:
            continue
        try:
            result = read_run(found)
        except InputError as error:
            notes.append(f"Unreadable, left out: {error}")
            continue
        if not transfer or "all" in result.accuracy:
            yield run, on or short_name(run.data), result


@dataclass(frozen=True)
class _Tested:
    """A result of the planned ``run`` on all classes of the data set of the short name ``on``, called ``name``."""

    run: PlannedRun
    on: str
    name: str
    result: FinishedRun

    @property
    def at_home(self) -> bool:
        """Whether it is tested where it is trained."""
        return self.on == short_name(self.run.data)


def _transfers(tested: Sequence[_Tested]) -> list[TransferRow]:
    """A row a method and source, of what every planned run has."""
    sources = {one.run: one.name for one in tested if one.at_home}
    by_row: dict[tuple[str, str], list[_Tested]] = {}
    for one in tested:
        source = sources.get(one.run, short_name(one.run.data))
        by_row.setdefault((one.run.method, source), []).append(one)
    rows = []
    for (method, source), found in by_row.items():
        seeds: dict[int | None, dict[str, float]] = {}
        per_class: dict[int | None, dict[str, dict[str, float]]] = {}
        for one in found:
            seeds.setdefault(one.run.seed, {})[one.name] = one.result.accuracy["all"]
            if "all" in one.result.per_class:
                per_class.setdefault(one.run.seed, {})[one.name] = one.result.per_class["all"]
        home = [one.result for one in found if one.at_home]
        seconds = [run.seconds["train"] for run in home if "train" in run.seconds]
        rows.append(
            TransferRow(
                method,
                source,
                seeds,
                per_class,
                tuple(short_name(name) for name in found[0].run.targets),
                Stat.of(run.accuracy["retained_all"] for run in home if "retained_all" in run.accuracy),
                home[0].trained_parameters if home else None,
                statistics.fmean(seconds) if seconds else None,
            )
        )
    return sorted(rows, key=lambda row: (row.source, method_order(row.method)))
