"""The paper's tables from a sweep's folder: per data set and mean, over seeds, beside the published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

from rmadapter.reports import published
from rmadapter.reports.finished_runs import RETAINED
from rmadapter.reports.groups import method_order, model_label
from rmadapter.reports.rows import DEVIATION, DataMeans, Row, Stat
from rmadapter.reports.sweep.by_shots import few_shot_tables, shots_lines
from rmadapter.reports.sweep.differences import Difference, difference_tables
from rmadapter.reports.sweep.outcomes import SweepResults, TransferRow
from rmadapter.reports.tables import Table, difference, joined, number
from rmadapter.sweeps.protocols import FEW_SHOT, TRANSFERS, data_and_style

HM_NOTE = (
    "Three harmonic means, since publications differ in which they print: HM of means is of the mean base and the mean "
    "new accuracy; mean of HMs is over the data sets, of each one's means over seeds; HM per seed is each seed's HM of "
    f"its means over the data sets. ± is the {DEVIATION} of a seed's means over the data sets, for the seeds that all "
    "of them have."
)
HM_HEADINGS = {published.HM_OF_MEANS: "HM of means", published.MEAN_OF_HMS: "mean of HMs"}
RESULT_HEADINGS = ("method", "trained_on", "data", "part", "seeds", "mean", "sd", "published")
_RETAINED_HEADINGS = tuple(part.replace("_", " ") for part in RETAINED)


def tables(found: SweepResults, listed: Sequence[Difference]) -> list[Table]:
    """The tables of the protocol: means, the paired differences ``listed``, each data set."""
    paired = difference_tables(found, listed)
    if found.protocol == FEW_SHOT:
        return few_shot_tables(found, paired)
    if found.protocol in TRANSFERS:
        return [*_source_means(found), *paired, *_transfer_tables(found), _reference(found.protocol)]
    return [*_mean_tables(found), *paired, *_data_tables(found), _reference(found.protocol)]


def _mean_tables(found: SweepResults) -> list[Table]:
    if not found.means:
        return []
    rows = []
    for mean in found.means:
        paper = _published_mean(found, mean)
        rows.append(
            (
                mean.group.method,
                mean.group.style or "",
                str(len(mean.data)),
                str(mean.seeds or ""),
                mean.text("base"),
                mean.text("new"),
                number(mean.hm_of_means),
                number(mean.mean_of_hms),
                str(mean.per_seed.get("hm", "")),
                *(mean.text(part) for part in RETAINED),
                joined((paper.base, paper.new, paper.hm)) if paper else "",
                difference(mean.base, paper and paper.base),
                difference(mean.new, paper and paper.new),
                *(difference(getattr(mean, kind), _published_hm(paper, kind)) for kind in HM_HEADINGS),
            )
        )
    headings = ("method", "style", "data sets", "seeds", "base", "new", *HM_HEADINGS.values(), "HM per seed")
    headings += _RETAINED_HEADINGS
    headings += ("published base / new / HM", "base", "new", *HM_HEADINGS.values())
    return [Table("Mean over the data sets", _differences(headings), tuple(rows), words=range(2), note=HM_NOTE)]


def _published_mean(found: SweepResults, mean: DataMeans) -> published.BaseNew | None:
    """The method's published means over the same data sets, where what was measured compares with them."""
    if found.incomparable.keys() & set(mean.data):
        return None
    return published.base_new_mean(mean.group.method, frozenset(mean.data))


def _published_hm(paper: published.BaseNew | None, kind: str) -> float | None:
    """The published harmonic mean, where it is of that kind."""
    return paper.hm if paper is not None and paper.hm_is == kind else None


def _published(found: SweepResults, row: Row) -> tuple[float, float] | None:
    """Published base and new accuracy on the row's data set, where what was measured compares with them."""
    return None if row.group.data in found.incomparable else published.base_new(row.group.method, row.group.data)


def _published_transfer(found: SweepResults, row: TransferRow) -> float | None:
    """The published mean over the row's targets, where what was measured compares with it."""
    if found.incomparable.keys() & {row.source, *row.targets}:
        return None
    return published.transfer_mean(found.protocol, row.method, row.source, frozenset(row.targets))


def _data_tables(found: SweepResults) -> list[Table]:
    made = []
    for data in dict.fromkeys(row.data_name for row in found.rows):
        rows = []
        for row in sorted((r for r in found.rows if r.data_name == data), key=lambda r: method_order(r.group.method)):
            paper = _published(found, row)
            base, new = row.accuracy("base"), row.accuracy("new")
            rows.append(
                (
                    row.group.method,
                    str(sum(run.seed is not None for run in row.runs) or ""),
                    str(base or ""),
                    str(new or ""),
                    str(row.accuracy("hm") or ""),
                    number(row.hm_of_means),
                    *(str(row.accuracy(part) or "") for part in RETAINED),
                    row.inference,
                    number(row.trained_parameters, ","),
                    number(_mean(row.seconds("train")), ".1f"),
                    joined(paper) if paper else "",
                    difference(_mean(base), paper and paper[0]),
                    difference(_mean(new), paper and paper[1]),
                )
            )
        headings = ("method", "seeds", "base", "new", "HM", "HM of means", *_RETAINED_HEADINGS)
        headings += ("inference", "trained parameters", "training s")
        headings += ("published base / new", "base", "new")
        made.append(Table(data, _differences(headings), tuple(rows)))
    return made


def _mean(stat: Stat | None) -> float | None:
    return None if stat is None else stat.mean


def _differences(headings: tuple[str, ...]) -> tuple[str, ...]:
    """The headings behind the published ones say what the difference is of."""
    place = next(n for n, heading in enumerate(headings) if heading.startswith("published"))
    return (*headings[: place + 1], *(f"{heading} - published" for heading in headings[place + 1 :]))


def _source_means(found: SweepResults) -> list[Table]:
    """With several sources, a line a method: the mean over them; empty with one source."""
    by_method: dict[str, list[TransferRow]] = {}
    for row in found.transfers:
        by_method.setdefault(row.method, []).append(row)
    if len({row.source for row in found.transfers}) < 2:
        return []
    styles = dict.fromkeys(style for row in found.transfers for seed in row.runs for style in _in_style(row, seed))
    rows = []
    for method, members in sorted(by_method.items(), key=lambda item: method_order(item[0])):
        home = [{seed: of[row.source] for seed, of in row.runs.items() if row.source in of} for row in members]
        drawn = [[_by_seed(row, style) for row in members] for style in styles]
        retained = [row.retained.mean for row in members if row.retained]
        kept = statistics.fmean(retained) if len(retained) == len(members) else None
        mean = _over_sources([row.seed_means for row in members])
        rows.append(
            (
                method,
                str(len(members)),
                _seeds(set.intersection(*(set(row.runs) for row in members))),
                str(_over_sources(home) or ""),
                number(kept),
                *(str(_over_sources(values) or "") for values in drawn),
                str(mean or ""),
            )
        )
    headings = ("method", "data sets", "seeds", "trained on", "retained", *styles, "mean of the others")
    note = (
        f"Accuracy on all classes, the mean over the data sets trained on; ± is the {DEVIATION} of a seed's means over "
        "them, for the seeds that all of them have."
    )
    if len({frozenset(row.source for row in members) for members in by_method.values()}) > 1:
        note += " Methods are not all trained on the same data sets: their means do not compare."
    return [Table("Mean over the data sets trained on", headings, tuple(rows), note=note)]


def _seeds(seeds: Collection[int | None]) -> str:
    """Their number; nothing for a method without."""
    return "" if None in seeds else str(len(seeds))


def _over_sources(by_source: Sequence[Mapping[int | None, float]]) -> Stat | None:
    """The mean over sources of what each has ``by_source``, by seed; None where one has nothing.

    Of every source all seeds count; the deviation is that of the means of those that all of them have.
    """
    if not all(by_source):
        return None
    shared = [seed for seed in by_source[0] if all(seed in values for values in by_source)]
    each = Stat.of(statistics.fmean(values[seed] for values in by_source) for seed in shared)
    mean = statistics.fmean(statistics.fmean(values.values()) for values in by_source)
    return Stat(mean, each.sd if each else None, len(shared))


def _by_seed(row: TransferRow, style: str) -> dict[int | None, float]:
    """Accuracy by seed on the source's classes drawn in ``style``."""
    return {seed: found[style] for seed in row.runs if style in (found := _in_style(row, seed))}


def _in_style(row: TransferRow, seed: int | None) -> dict[str, float]:
    """Accuracy by style, for targets that are the source's classes drawn in another."""
    named = {name: data_and_style(name) for name in row.runs[seed] if name != row.source}
    group = data_and_style(row.source)[0]
    return {style: row.runs[seed][name] for name, (other, style) in named.items() if style and other == group}


def _transfer_tables(found: SweepResults) -> list[Table]:
    made = []
    for source in dict.fromkeys(row.source for row in found.transfers):
        members = [row for row in found.transfers if row.source == source]
        names = [name for name in dict.fromkeys(n for row in members for n in row.by_data) if name != source]
        rows = []
        for row in members:
            paper = _published_transfer(found, row)
            rows.append(
                (
                    row.method,
                    _seeds(row.runs),
                    str(row.by_data.get(source, "")),
                    str(row.retained or ""),
                    *(str(row.by_data.get(name, "")) for name in names),
                    str(row.mean or ""),
                    number(paper),
                    difference(_mean(row.mean), paper),
                )
            )
        headings = (
            "method",
            "seeds",
            f"{source} (trained on)",
            "retained",
            *names,
            "mean of the others",
            "published",
            "mean - published",
        )
        made.append(Table(f"Trained on {source}", headings, tuple(rows), note="Accuracy on all classes of each."))
    return made


def _reference(protocol: str) -> Table:
    """The published means, so that they stand beside whatever was run."""
    note = f"{published.SETTING}; {published.NOT_OURS} {published.PRECISION_NOTE}"
    if protocol in TRANSFERS:
        targets = published.TRANSFER_TARGETS[protocol]
        transfers = tuple(
            (name, number(paper.source), *map(number, paper.targets or [None] * len(targets)), number(paper.mean))
            for name, paper in published.TRANSFER[protocol].items()
        )
        what = "the ten data sets" if protocol == "cross" else "ImageNet's four variants"
        headings = ("method", "imagenet (trained on)", *targets, "mean of the others")
        return Table(f"Published: {what}", headings, transfers, note=note)
    rows = tuple(
        (name, number(paper.base), number(paper.new), *(number(_published_hm(paper, kind)) for kind in HM_HEADINGS))
        for name, paper in published.BASE_NEW_MEAN.items()
    )
    headings = ("method", "base", "new", *HM_HEADINGS.values())
    return Table("Published: mean over the eleven data sets", headings, rows, note=note)


def result_lines(found: SweepResults) -> Iterator[tuple[object, ...]]:
    """The lines of report.csv: one a method, data set and part; "mean of N" in the place of a data set for means.

    In the few-shot protocol the part is the number of shots, such as "4 shots".

    ``seeds`` is None for a method without; in a line of means it counts those that all of the data sets have, whose
    standard deviation ``sd`` is.
    """
    for *names, stat, paper, seeded in _stats(found):
        if stat is not None:
            yield (*names, stat.count if seeded else None, stat.mean, stat.sd, paper)


def _stats(found: SweepResults) -> Iterator[tuple[str, str, str, str, Stat | None, float | None, bool]]:
    """Method, source, data set and part; what was measured and what is published; whether the method has seeds."""
    if found.protocol == FEW_SHOT:
        yield from shots_lines(found)
        return
    for row in found.rows:
        values = dict(zip(("base", "new"), _published(found, row) or (), strict=False))
        seeded, name = any(run.seed is not None for run in row.runs), row.data_name
        for part in ("base", "new", "hm", *RETAINED):
            yield row.group.method, name, name, part, row.accuracy(part), values.get(part), seeded
    for mean in found.means:
        paper = _published_mean(found, mean)
        name = f"mean of {len(mean.data)}" + (f"@{mean.group.style}" if mean.group.style else "")
        for part, value, other in (
            ("base", mean.base, paper and paper.base),
            ("new", mean.new, paper and paper.new),
            *((kind, getattr(mean, kind), _published_hm(paper, kind)) for kind in HM_HEADINGS),
            *((part, value, None) for part, value in mean.retained.items()),
        ):
            stat = None if value is None else Stat(value, mean.spread(part), mean.seeds or 0)
            yield mean.group.method, "", name, part, stat, other, mean.seeds is not None
        yield mean.group.method, "", name, "hm_per_seed", mean.per_seed.get("hm"), None, mean.seeds is not None
    for transfer in found.transfers:
        seeded = None not in transfer.runs
        for data, stat in transfer.by_data.items():
            yield transfer.method, transfer.source, data, "all", stat, None, seeded
        whole, name = _published_transfer(found, transfer), f"mean of {len(transfer.targets)}"
        yield transfer.method, transfer.source, name, "all", transfer.mean, whole, seeded


def differs_from_setting(found: SweepResults) -> str:
    """A sentence where the sweep's model or shots are not those of the published numbers; else empty."""
    model, weights, shots = (found.settings.get(name) for name in ("model", "pretrained", "shots"))
    ours, theirs = model_label(str(model), weights), published.WEIGHTS
    same = (model, weights) == published.MODEL
    if found.protocol != FEW_SHOT:  # which has published numbers for each number of shots
        ours, theirs, same = f"{ours} with {shots} shots", published.SETTING, same and shots == 16
    if same:
        return ""
    return (
        f"This sweep is of {ours}; published numbers are of {theirs}: differences between them are not of the method "
        "alone."
    )
