"""Results of finished runs: read from their folders, put together over seeds and over data sets.

Runs of one data set, model, method, number of shots and part trained on form a row. Over several data sets
three harmonic means are told apart, as published tables differ in which they print: the one of each seed, the mean
of the data sets' and the one of the means.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.clip.names import RANDOM, brings_weights
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import FORMAT, harmonic_mean
from rmadapter.evaluation.results_table import RESULTS_TABLE, KeptResult, ResultsTable
from rmadapter.files import read_json

PARTS = ("base", "new", "hm", "all")
# The same classes in a style that neither pretraining nor training has seen: what adaptation leaves.
RETAINED = ("retained_base", "retained_new", "retained_all")
# The order of rows and bars, simplest first; what else a method is called comes after these, by name.
METHOD_ORDER = ("zeroshot", "single", "single+consistency", "mma", "mma+consistency", "rmadapter")


class Group(NamedTuple):
    """What runs of one row share."""

    data: str
    model: str
    pretrained: str | None
    split: str
    classes: str
    method: str
    shots: int | None
    style: str | None = None


@dataclass(frozen=True)
class FinishedRun:
    """One results.json, or the line of a results.jsonl that took its place.

    Args:
        place: what it is called in sentences: its folder, or the table's line
        folder: where it is, and metrics.jsonl beside it; None for a table's line
        written: a sort key, of when
        group: the row that the run belongs to
        seed: None where none is recorded (zero-shot)
        accuracy: percent, by ``base``, ``new``, ``hm`` (always from the two before), ``all`` and ``RETAINED``; what
            is known
        trained_parameters: None where not recorded
        seconds: by ``train`` and ``eval``; what is known
        split_file: ``ImageData.split_id``
        images: test images by part
        settings: what else determines the accuracy, as recorded: by dotted option name, with the precision
    """

    place: str
    folder: Path | None
    written: tuple[int, int]
    group: Group
    seed: int | None
    accuracy: dict[str, float]
    trained_parameters: int | None
    seconds: dict[str, float]
    split_file: str | None
    images: dict[str, int]
    settings: dict[str, Any]


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


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[tuple[Path, str]]]:
    """The runs in ``folders`` and below, in results.json files and in tables, and those that cannot be read, with why.

    Raises:
        InputError: a folder that is not there, a table with a damaged line, no run that can be read.
    """
    files: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"run folder {folder} is missing")
        found = sorted(path for name in ("results.json", RESULTS_TABLE) for path in folder.rglob(name))
        files |= dict.fromkeys(path.resolve() for path in found)
    sources: list[Path | KeptResult] = []
    for file in files:
        sources += ResultsTable(file).lines() if file.name == RESULTS_TABLE else [file]
    runs, unreadable = [], []
    for source in sources:
        try:
            runs.append(read_run(source))
        except InputError as error:
            unreadable.append((source if isinstance(source, Path) else source.table, str(error)))
    if not runs:
        if unreadable:
            raise InputError("; ".join(reason for _, reason in unreadable))
        raise InputError(
            f"no results.json or {RESULTS_TABLE} in {', '.join(map(str, folders))}; a run writes it when it ends"
        )
    return runs, unreadable


def read_run(source: Path | KeptResult) -> FinishedRun:
    """One results.json, or a table's line.

    Raises:
        InputError: not readable, of a newer format, or a field that is missing or of the wrong kind.
    """
    if isinstance(source, KeptResult):
        values, what, place, folder = source.results, f"results table {source.place}", source.place, None
        written = (source.table.stat().st_mtime_ns, source.line)
    else:
        values, what, folder = read_json(source, "results file"), f"results file {source}", source.parent
        place, written = str(folder), (source.stat().st_mtime_ns, 0)
    if not isinstance(values, dict):
        raise InputError(f"{what} holds no JSON object")
    if values.get("format") != FORMAT:
        raise InputError(f"{what} has format {values.get('format')!r}; this version reads {FORMAT}")

    def field(name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        value = values.get(name, default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"{what}: {name} is {value!r}")
        return value

    optional_int, optional_str = (int, type(None)), (str, type(None))
    accuracy = _numbers(field("accuracy", dict), what, "accuracy", 100)
    accuracy.pop("hm", None)
    if "base" in accuracy and "new" in accuracy:
        accuracy["hm"] = harmonic_mean(accuracy["base"], accuracy["new"])
    group = Group(
        data=field("data", str),
        model=field("model", str),
        pretrained=field("pretrained", optional_str),
        split=field("split", str, "test"),
        classes=field("classes", str),
        method=field("method", str),
        shots=field("shots", optional_int),
        style=field("style", optional_str),
    )
    seconds = _numbers(field("seconds", dict, {}), what, "seconds", math.inf)
    parameters = field("trained_parameters", optional_int)
    counts = _numbers(field("images", dict, {}), what, "images", math.inf)
    images = {part: int(count) for part, count in counts.items()}
    split_file = field("split_file", optional_str)
    settings = dict(_dotted(field("settings", dict, {})))
    if (precision := field("precision", optional_str)) is not None:
        settings["precision"] = precision
    seed = field("seed", optional_int)
    return FinishedRun(place, folder, written, group, seed, accuracy, parameters, seconds, split_file, images, settings)


def _dotted(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in ``values`` and in the groups inside it, by dotted name; lists as text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value) if isinstance(value, list) else value


def differing_settings(runs: Iterable[FinishedRun]) -> list[str]:
    """A sentence for each setting in which runs of one row differ, so that their mean is of several settings.

    Runs that do not record a setting are not compared in it.
    """
    groups: dict[Group, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    sentences = []
    for group, members in groups.items():
        data = group.data + (f"@{group.style}" if group.style else "")
        for name in dict.fromkeys(name for run in members for name in run.settings):
            seeds: dict[Any, list[str]] = {}
            for run in members:
                if name in run.settings:
                    seeds.setdefault(run.settings[name], []).extend([] if run.seed is None else [f"seed {run.seed}"])
            if len(seeds) > 1:
                listed = "; ".join(f"{value}" + (f" ({', '.join(of)})" if of else "") for value, of in seeds.items())
                sentences.append(f"The runs of {group.method} on {data} differ in {name}: {listed}.")
    return sentences


def _numbers(values: dict[str, Any], what: str, name: str, high: float) -> dict[str, float]:
    """The entries of ``values`` that are not null, all of which must be numbers from 0 to ``high``."""
    numbers = {key: value for key, value in values.items() if value is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise InputError(f"{what}: {name} of {key} is {value!r}; valid: a number from 0 to {high}")
    return numbers


def one_a_seed(runs: list[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The newest run of each group and seed, as one counted twice would narrow the deviation; the others' places."""
    newest: dict[tuple[Group, int | None], FinishedRun] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: run.written):
        earlier = newest.get((run.group, run.seed))
        if earlier:
            repeated.append(earlier.place)
        newest[run.group, run.seed] = run
    return list(newest.values()), sorted(repeated)


def method_order(method: str) -> tuple[int, str]:
    """A sort key: the order of ``METHOD_ORDER``, then by name."""
    return (METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), method)


def make_rows(runs: Iterable[FinishedRun]) -> list[Row]:
    """Runs of one group together, by data set, model and part, in the order of methods and shots."""
    groups: dict[Group, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)

    def order(group: Group) -> tuple:
        context = (group.data, group.style or "", group.model, group.pretrained or "", group.split, group.classes)
        return (*context, method_order(group.method), group.shots or 0)

    return [
        Row(group, tuple(sorted(groups[group], key=lambda run: -1 if run.seed is None else run.seed)))
        for group in sorted(groups, key=order)
    ]


def means_over_data(rows: Sequence[Row]) -> list[DataMeans]:
    """For each method with base and new accuracy, or with base accuracy alone, on two or more data sets."""
    methods: dict[Group, list[Row]] = {}
    for row in rows:
        if row.accuracy("base"):
            methods.setdefault(row.group._replace(data=""), []).append(row)
    means = []
    for group, members in methods.items():
        both = [row for row in members if row.accuracy("hm")]
        if len(both or members) > 1:
            means.append(_means(group, both or members))
    return sorted(means, key=lambda mean: (method_order(mean.group.method), mean.group.shots or 0))


def _means(group: Group, members: Sequence[Row]) -> DataMeans:
    parts = [part for part in ("base", "new", *RETAINED) if all(row.accuracy(part) for row in members)]
    means = {part: statistics.fmean(row.mean(part) for row in members) for part in parts}
    seed_means = {part: _seed_means(members, part) for part in parts}
    seeds = seed_means["base"].keys()
    known = "new" in means
    if known:
        seed_means["hm"] = {
            seed: harmonic_mean(value, seed_means["new"][seed])
            for seed, value in seed_means["base"].items()
            if seed in seed_means["new"]
        }
    return DataMeans(
        group,
        tuple(row.group.data for row in members),
        means["base"],
        means.get("new"),
        harmonic_mean(means["base"], means["new"]) if known else None,
        statistics.fmean(harmonic_mean(row.mean("base"), row.mean("new")) for row in members) if known else None,
        {part: means[part] for part in RETAINED if part in means},
        {part: stat for part, values in seed_means.items() if (stat := Stat.of(values.values())) is not None},
        None if None in seeds else len(seeds),
    )


def _seed_means(members: Sequence[Row], part: str) -> dict[int | None, float]:
    """For the seeds that all of ``members`` have: the mean over them of that seed's accuracy."""
    by_seed = [{run.seed: run.accuracy[part] for run in row.runs if part in run.accuracy} for row in members]
    seeds = [seed for seed in by_seed[0] if all(seed in found for found in by_seed)]
    return {seed: statistics.fmean(found[seed] for found in by_seed) for seed in seeds}


def short_model(group: Group) -> str:
    """The model's name as people say it; see ``model_label``."""
    return model_label(group.model, group.pretrained)


def model_label(model: str, pretrained: str | None) -> str:
    """The last folder of a path, the weights' tag in brackets; a name that stands for no weights has random ones."""
    name = Path(model.removeprefix("local-dir:")).name
    if pretrained is not None and pretrained != RANDOM:
        return f"{name} ({Path(pretrained).name})"
    return name if brings_weights(model) else f"{name} (random weights)"
