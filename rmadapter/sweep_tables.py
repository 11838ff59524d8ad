"""The paper's tables from a sweep's folder: per data set and mean, over seeds, beside the published numbers."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter import published
from rmadapter.errors import InputError
from rmadapter.files import read_json
from rmadapter.protocols import TRANSFERS, PlannedRun, short_name
from rmadapter.results import DataMeans, Row, Run, Stat, make_rows, means_over_data, method_order, read_run
from rmadapter.sweep import read_manifest, state, target_folder
from rmadapter.sweep_config import Sweep
from rmadapter.tables import Table, difference, joined, number

HM_NOTE = (
    "Three harmonic means, since publications differ in which they print: HM of means is of the mean base and the mean "
    "new accuracy; mean of HMs is over the data sets, of each one's means over seeds; HM per seed is each seed's HM of "
    "its means over the data sets, with the standard deviation over seeds."
)


@dataclass(frozen=True)
class TransferRow:
    """A method trained on one source: accuracy by data set over seeds, and the mean over the targets of each seed."""

    method: str
    source: str
    by_data: dict[str, Stat]
    targets: frozenset[str]
    mean: Stat | None
    parameters: int | None
    seconds: float | None


@dataclass(frozen=True)
class SweepResults:
    """What a sweep has found so far.

    Attributes:
        protocol, settings: of its manifest.
        rows, means: base to new; empty for transfers.
        transfers: cross and domain; empty otherwise.
        runs: number of runs of the sweep; done: of those with all results.
        notes: sentences on what is missing or failed.
    """

    protocol: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    means: tuple[DataMeans, ...]
    transfers: tuple[TransferRow, ...]
    runs: int
    done: int
    notes: tuple[str, ...]


def read_sweep(out: Path) -> SweepResults:
    """Everything that the runs of the sweep in ``out`` have left so far.

    Raises:
        InputError: no sweep there, one of another version, or none of its runs has a result.
    """
    manifest = read_manifest(out)
    lists = {name: tuple(manifest[name]) for name in ("data", "methods", "seeds", "sources")}
    sweep = Sweep(manifest["protocol"], **lists, options=(), data_root=None, out=out)
    found, notes = state(sweep), []
    for run in found.failed:
        error = read_json(sweep.folder(run) / "failed.json", "failure file").get("error")
        notes.append(f"Failed: {run.key}: {error}")
    left = len(found.running) + len(found.open)
    if left:
        notes.append(f"{left} of {len(sweep.runs())} runs are not done; means are over those that are.")
    rows: list[Row] = []
    transfers: list[TransferRow] = []
    if sweep.protocol in TRANSFERS:
        transfers = _transfers(sweep, notes)
    else:
        files = [sweep.folder(run) / "run" / "results.json" for run in found.done]
        rows = make_rows(run for file in files if (run := _read(file, notes)) is not None)
    if not rows and not transfers:
        raise InputError(f"no run of the sweep in {out} has a result yet" + "".join(f"; {note}" for note in notes))
    means = means_over_data(rows)
    if len({mean.data for mean in means}) > 1:
        notes.append("Methods are not all done on the same data sets: their means do not compare.")
    settings = manifest["settings"]
    return SweepResults(
        sweep.protocol,
        settings,
        tuple(rows),
        tuple(means),
        tuple(transfers),
        len(sweep.runs()),
        len(found.done),
        tuple(notes),
    )


def _read(file: Path, notes: list[str]) -> Run | None:
    """The results in ``file``; None, and a note, where they cannot be read."""
    try:
        return read_run(file)
    except InputError as error:
        notes.append(f"Unreadable, left out: {error}")
        return None


def _transfers(sweep: Sweep, notes: list[str]) -> list[TransferRow]:
    by_row: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in sweep.runs():
        by_row.setdefault((run.method, run.data), []).append(run)
    rows = []
    for (method, source), runs in by_row.items():
        seeds = [found for run in runs if (found := _transfer_run(sweep, run, notes))]
        if not seeds:
            continue
        home = [found[short_name(source)] for found in seeds if short_name(source) in found]
        names = dict.fromkeys(name for found in seeds for name in found)
        by_data = {name: Stat.of(found[name].accuracy["all"] for found in seeds if name in found) for name in names}
        targets = {short_name(name) for name in runs[0].targets}
        whole = [found for found in seeds if targets <= found.keys()]
        mean = Stat.of(statistics.fmean(found[name].accuracy["all"] for name in targets) for found in whole)
        seconds = [run.seconds["train"] for run in home if "train" in run.seconds]
        rows.append(
            TransferRow(
                method,
                short_name(source),
                by_data,
                frozenset(targets),
                mean,
                home[0].trained_parameters if home else None,
                statistics.fmean(seconds) if seconds else None,
            )
        )
    return sorted(rows, key=lambda row: (row.source, method_order(row.method)))


def _transfer_run(sweep: Sweep, run: PlannedRun, notes: list[str]) -> dict[str, Run]:
    """The results that are there, by short name of the data set."""
    folder = sweep.folder(run)
    files = {short_name(run.data): folder / "run" / "results.json"}
    files |= {short_name(target): target_folder(folder, target) / "results.json" for target in run.targets}
    read = {name: _read(file, notes) for name, file in files.items() if file.is_file()}
    return {name: found for name, found in read.items() if found is not None and "all" in found.accuracy}


def tables(found: SweepResults) -> list[Table]:
    """The tables of the protocol, means first."""
    if found.protocol in TRANSFERS:
        return [*_transfer_tables(found), _reference(found.protocol)]
    return [*_mean_tables(found), *_data_tables(found), _reference(found.protocol)]


def _mean_tables(found: SweepResults) -> list[Table]:
    if not found.means:
        return []
    rows = []
    for mean in found.means:
        paper = published.base_new_mean(mean.group.method, frozenset(mean.data))
        rows.append(
            (
                mean.group.method,
                str(len(mean.data)),
                number(mean.base),
                number(mean.new),
                number(mean.hm_of_means),
                number(mean.mean_of_hms),
                str(mean.hm_per_seed or ""),
                joined(paper) if paper else "",
                difference(mean.base, paper and paper.base),
                difference(mean.new, paper and paper.new),
                difference(mean.hm_of_means, paper and paper.hm),
            )
        )
    headings = ("method", "data sets", "base", "new", "HM of means", "mean of HMs", "HM per seed")
    headings += ("published base / new / HM", "base", "new", "HM of means")
    return [Table("Mean over the data sets", _differences(headings), tuple(rows), note=HM_NOTE)]


def _data_tables(found: SweepResults) -> list[Table]:
    made = []
    for data in dict.fromkeys(row.group.data for row in found.rows):
        rows = []
        for row in sorted((r for r in found.rows if r.group.data == data), key=lambda r: method_order(r.group.method)):
            paper = published.base_new(row.group.method, data)
            base, new = row.accuracy("base"), row.accuracy("new")
            rows.append(
                (
                    row.group.method,
                    str(sum(run.seed is not None for run in row.runs) or ""),
                    str(base or ""),
                    str(new or ""),
                    str(row.accuracy("hm") or ""),
                    number(row.hm_of_means),
                    number(row.trained_parameters, ","),
                    number(row.seconds("train") and row.seconds("train").mean, ".1f"),
                    joined(paper) if paper else "",
                    difference(base and base.mean, paper and paper[0]),
                    difference(new and new.mean, paper and paper[1]),
                )
            )
        headings = ("method", "seeds", "base", "new", "HM", "HM of means", "trained parameters", "training s")
        headings += ("published base / new", "base", "new")
        made.append(Table(data, _differences(headings), tuple(rows)))
    return made


def _differences(headings: tuple[str, ...]) -> tuple[str, ...]:
    """The headings behind the published ones say what the difference is of."""
    place = next(n for n, heading in enumerate(headings) if heading.startswith("published"))
    return (*headings[: place + 1], *(f"{heading} - published" for heading in headings[place + 1 :]))


def _transfer_tables(found: SweepResults) -> list[Table]:
    made = []
    for source in dict.fromkeys(row.source for row in found.transfers):
        members = [row for row in found.transfers if row.source == source]
        names = [name for name in dict.fromkeys(n for row in members for n in row.by_data) if name != source]
        rows = []
        for row in members:
            paper = published.transfer_mean(found.protocol, row.method, source, row.targets)
            rows.append(
                (
                    row.method,
                    str(row.by_data.get(source, "")),
                    *(str(row.by_data.get(name, "")) for name in names),
                    str(row.mean or ""),
                    number(paper),
                    difference(row.mean and row.mean.mean, paper),
                )
            )
        headings = ("method", f"{source} (trained on)", *names, "mean of the others", "published", "mean - published")
        made.append(Table(f"Trained on {source}", headings, tuple(rows), note="Accuracy on all classes of each."))
    return made


def _reference(protocol: str) -> Table:
    """The published means, so that they stand beside whatever was run."""
    note = f"{published.SETTING}; these numbers are the papers', not measured here."
    if protocol in TRANSFERS:
        rows = tuple((name, number(value)) for name, value in published.TRANSFER_MEAN[protocol].items())
        what = "the ten data sets" if protocol == "cross" else "ImageNet's four variants"
        return Table(f"Published: mean over {what}", ("method", "accuracy"), rows, note=note)
    rows = tuple((name, *map(number, values)) for name, values in published.BASE_NEW_MEAN.items())
    return Table("Published: mean over the eleven data sets", ("method", "base", "new", "HM"), rows, note=note)


def to_csv(found: SweepResults) -> str:
    """One line a method, data set and part, in full precision; "mean" in the place of a data set for means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "trained_on", "data", "part", "seeds", "mean", "sd", "published"])

    def line(method: str, source: str, data: str, part: str, stat: Stat | None, paper: float | None) -> None:
        if stat is not None:
            writer.writerow([method, source, data, part, stat.count, stat.mean, stat.sd, paper])

    for row in found.rows:
        paper = published.base_new(row.group.method, row.group.data)
        values = dict(zip(("base", "new"), paper or (), strict=False))
        for part in ("base", "new", "hm"):
            line(row.group.method, row.group.data, row.group.data, part, row.accuracy(part), values.get(part))
    for mean in found.means:
        paper = published.base_new_mean(mean.group.method, frozenset(mean.data))
        method, sets = mean.group.method, len(mean.data)
        for part, value, other in (
            ("base", mean.base, paper and paper.base),
            ("new", mean.new, paper and paper.new),
            ("hm_of_means", mean.hm_of_means, paper and paper.hm),
            ("mean_of_hms", mean.mean_of_hms, None),
        ):
            line(method, "", f"mean of {sets}", part, Stat(value, None, sets), other)
        line(method, "", f"mean of {sets}", "hm_per_seed", mean.hm_per_seed, None)
    for transfer in found.transfers:
        for data, stat in transfer.by_data.items():
            line(transfer.method, transfer.source, data, "all", stat, None)
        paper = published.transfer_mean(found.protocol, transfer.method, transfer.source, transfer.targets)
        line(transfer.method, transfer.source, f"mean of {len(transfer.targets)}", "all", transfer.mean, paper)
    return text.getvalue()


def differs_from_setting(settings: dict[str, Any]) -> str:
    """A sentence where the sweep's model or shots are not those of the published numbers; else empty."""
    ours = (settings.get("model"), settings.get("pretrained"), settings.get("shots"))
    if ours == (*published.MODEL, 16):
        return ""
    model = Path(str(ours[0]).removeprefix("local-dir:")).name
    weights = f" ({Path(ours[1]).name})" if ours[1] else ""
    return (
        f"This sweep is of {model}{weights} with {ours[2]} shots; published numbers are of {published.SETTING}: "
        "differences between them are not of the method alone."
    )
