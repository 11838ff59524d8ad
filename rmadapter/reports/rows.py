"""The rows of a report: means over seeds, and over data sets.

Over several data sets three harmonic means are told apart, as published tables differ in which they print: the one of
each seed, the mean of the data sets' and the one of the means.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rmadapter.evaluation.results_file import harmonic_mean
from rmadapter.reports.finished_runs import RETAINED, FinishedRun
from rmadapter.reports.groups import Group, Member, by_group, method_order, over_data

# What ± is in tables and plots; the sentence stands once under the tables.
DEVIATION = "standard deviation over seeds (n - 1)"
DEVIATION_NOTE = (
    "Standard deviations divide by n - 1; the field's tables divide by n, which makes 0.82 of it for three seeds."
)


@dataclass(frozen=True)
class Stat:
    """Mean and standard deviation (n - 1; None for one value) of ``count`` values."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Stat | None:
        """None for no values."""
        values = list(values)
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.sd is None else f" ± {self.sd:.2f}")


@dataclass(frozen=True)
class Row:
    """The runs of one group, one a seed."""

    group: Group
    runs: tuple[FinishedRun, ...]

    @property
    def data_name(self) -> str:
        """Its data set, with the style where it has one."""
        return self.group.data + (f"@{self.group.style}" if self.group.style else "")

    def accuracy(self, part: str) -> Stat | None:
        """Over the seeds that have it; percent."""
        return Stat.of(run.accuracy[part] for run in self.runs if part in run.accuracy)

    def mean(self, part: str) -> float:
        """The mean of an accuracy that the row has; percent."""
        stat = self.accuracy(part)
        assert stat is not None, f"no run of {self.group} has {part}"
        return stat.mean

    def seconds(self, stage: str) -> Stat | None:
        """Of ``train`` or ``eval``."""
        return Stat.of(run.seconds[stage] for run in self.runs if stage in run.seconds)

    @property
    def trained_parameters(self) -> int | None:
        """Of the first run that records it; the same method has the same everywhere."""
        return next((run.trained_parameters for run in self.runs if run.trained_parameters is not None), None)

    @property
    def inference(self) -> str:
        """ "two" where the method answers otherwise among classes that it was not trained on; else empty."""
        return "two" if any(run.inference for run in self.runs) else ""

    @property
    def hm_of_means(self) -> float | None:
        """The harmonic mean of mean base and mean new accuracy."""
        base, new = self.accuracy("base"), self.accuracy("new")
        return None if base is None or new is None else harmonic_mean(base.mean, new.mean)


@dataclass(frozen=True)
class DataMeans:
    """A method over several data sets, percent; ``new`` and harmonic means None where it has base accuracy alone.

    Attributes:
        retained: by part, for those that all of the data sets have.
        per_seed: by part (``base``, ``new``, ``hm`` and those of ``retained``), of each seed's mean over the data sets,
            for the seeds that all of them have; of ``hm`` the harmonic mean of a seed's means.
        seeds: number of these seeds; None for a method without.
    """

    group: Group
    data: tuple[str, ...]
    base: float
    new: float | None
    hm_of_means: float | None
    mean_of_hms: float | None
    retained: dict[str, float]
    per_seed: dict[str, Stat]
    seeds: int | None

    def text(self, part: str) -> str:
        """Of ``base``, ``new`` or one of ``retained``: the mean and its ``spread``."""
        value = {"base": self.base, "new": self.new, **self.retained}.get(part)
        return "" if value is None else str(Stat(value, self.spread(part), 0))

    def spread(self, part: str) -> float | None:
        """The standard deviation over seeds of the seed's mean over the data sets; None for fewer than two."""
        return self.per_seed[part].sd if part in self.per_seed else None


def inferences(rows: Iterable[Row]) -> list[str]:
    """A sentence for each method with two inferences: which it took for what."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for run in row.runs:
            found.setdefault(row.group.method, {}).update(
                dict.fromkeys(f"{part.replace('_', ' ')} classes by {taken}" for part, taken in run.inference.items())
            )
    return [f"Inference two: {method} answers {', '.join(taken)}." for method, taken in found.items() if taken]


def make_rows(members: Iterable[Member]) -> list[Row]:
    """Runs of one group together, by data set, model and part, in the order of methods and shots."""
    groups = {group: [member.run for member in found] for group, found in by_group(members).items()}

    def order(group: Group) -> tuple:
        context = (group.data, group.style or "", group.model, group.pretrained or "", group.split, group.classes)
        return (*context, method_order(group.method), group.shots or 0, group.tested, group.trained_on, group.settings)

    return [
        Row(group, tuple(sorted(groups[group], key=lambda run: -1 if run.seed is None else run.seed)))
        for group in sorted(groups, key=order)
    ]


def means_over_data(rows: Sequence[Row]) -> list[DataMeans]:
    """For each method with base and new accuracy, or with base accuracy alone, on two or more data sets."""
    methods: dict[Group, list[Row]] = {}
    for row in rows:
        if row.accuracy("base"):
            methods.setdefault(over_data(row.group), []).append(row)
    means = []
    for group, members in methods.items():
        both = [row for row in members if row.accuracy("hm")]
        if len(both or members) > 1:
            means.append(_means(group, both or members))

    def order(mean: DataMeans) -> tuple:
        group = mean.group
        return (method_order(group.method), group.shots or 0, group.trained_on, group.settings)

    return sorted(means, key=order)


def _means(group: Group, members: Sequence[Row]) -> DataMeans:
    parts = [part for part in ("base", "new", *RETAINED) if all(row.accuracy(part) for row in members)]
    means = {part: statistics.fmean(row.mean(part) for row in members) for part in parts}
    by_seed = {part: seed_means(members, part) for part in parts}
    seeds = by_seed["base"].keys()
    known = "new" in means
    if known:
        by_seed["hm"] = {
            seed: harmonic_mean(value, by_seed["new"][seed])
            for seed, value in by_seed["base"].items()
            if seed in by_seed["new"]
        }
    return DataMeans(
        group,
        tuple(row.group.data for row in members),
        means["base"],
        means.get("new"),
        harmonic_mean(means["base"], means["new"]) if known else None,
        statistics.fmean(harmonic_mean(row.mean("base"), row.mean("new")) for row in members) if known else None,
        {part: means[part] for part in RETAINED if part in means},
        {part: stat for part, values in by_seed.items() if (stat := Stat.of(values.values())) is not None},
        None if None in seeds else len(seeds),
    )


def seed_means(members: Sequence[Row], part: str) -> dict[int | None, float]:
    """Percent by seed, for the seeds that all of ``members`` have: the mean over them of that seed's accuracy."""
    by_seed = [{run.seed: run.accuracy[part] for run in row.runs if part in run.accuracy} for row in members]
    seeds = [seed for seed in by_seed[0] if all(seed in found for found in by_seed)]
    return {seed: statistics.fmean(found[seed] for found in by_seed) for seed in seeds}
