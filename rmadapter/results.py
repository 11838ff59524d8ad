"""Results of finished runs: read from their folders, put together over seeds and over data sets.

Runs of one data set, model, method, number of shots and part trained on form a row. Over several data sets
three harmonic means are told apart, as published tables differ in which they print: the one of each seed, the mean
of the data sets' and the one of the means.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.errors import InputError
from rmadapter.files import read_json

FORMAT = 1  # of results.json
PARTS = ("base", "new", "hm", "all")
# The same classes in a style that neither pretraining nor training has seen: what adaptation leaves.
RETAINED = ("retained_base", "retained_new", "retained_all")
# The order of rows and bars, simplest first; what else a method is called comes after these, by name.
METHODS = ("zeroshot", "single", "single+consistency", "mma", "mma+consistency", "rmadapter")


def harmonic_mean(base: float, new: float) -> float:
    """``2 base new / (base + new)``, 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


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
class Run:
    """One results.json.

    Args:
        folder: where it is, and metrics.jsonl beside it
        group: the row that the run belongs to
        seed: None where none is recorded (zero-shot)
        accuracy: percent, by ``base``, ``new``, ``hm`` (always from the two before), ``all`` and ``RETAINED``; what
            is known
        trained_parameters: None where not recorded
        seconds: by ``train`` and ``eval``; what is known
    """

    folder: Path
    group: Group
    seed: int | None
    accuracy: dict[str, float]
    trained_parameters: int | None
    seconds: dict[str, float]


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
    runs: tuple[Run, ...]

    def accuracy(self, part: str) -> Stat | None:
        """Over the seeds that have it; percent."""
        return Stat.of(run.accuracy[part] for run in self.runs if part in run.accuracy)

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
    """A method over several data sets, percent; ``retained`` by part, for those that all of them have."""

    group: Group
    data: tuple[str, ...]
    base: float
    new: float
    hm_of_means: float
    mean_of_hms: float
    hm_per_seed: Stat | None
    retained: dict[str, float]


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs in ``folders`` and below, and the results.json files that cannot be read, with the reason."""
    files: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"run folder {folder} is missing")
        files |= dict.fromkeys(path.resolve() for path in sorted(folder.rglob("results.json")))
    runs, unreadable = [], []
    for file in files:
        try:
            runs.append(read_run(file))
        except InputError as error:
            unreadable.append((file, str(error)))
    if not runs:
        if unreadable:
            raise InputError("; ".join(reason for _, reason in unreadable))
        raise InputError(f"no results.json in {', '.join(map(str, folders))}; a run writes it when it ends")
    return runs, unreadable


def read_run(file: Path) -> Run:
    """One results.json.

    Raises:
        InputError: not readable, of a newer format, or a field that is missing or of the wrong kind.
    """
    values = read_json(file, "results file")
    if not isinstance(values, dict):
        raise InputError(f"results file {file} holds no JSON object")
    if values.get("format") != FORMAT:
        raise InputError(f"results file {file} has format {values.get('format')!r}; this version reads {FORMAT}")

    def field(name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        value = values.get(name, default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"results file {file}: {name} is {value!r}")
        return value

    optional_int, optional_str = (int, type(None)), (str, type(None))
    accuracy = _numbers(field("accuracy", dict), file, "accuracy", 100)
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
    seconds = _numbers(field("seconds", dict, {}), file, "seconds", math.inf)
    parameters = field("trained_parameters", optional_int)
    return Run(file.parent, group, field("seed", optional_int), accuracy, parameters, seconds)


def _numbers(values: dict[str, Any], file: Path, name: str, high: float) -> dict[str, float]:
    """The entries of ``values`` that are not null, all of which must be numbers from 0 to ``high``."""
    numbers = {key: value for key, value in values.items() if value is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise InputError(f"results file {file}: {name} of {key} is {value!r}; valid: a number from 0 to {high}")
    return numbers


def one_a_seed(runs: list[Run]) -> tuple[list[Run], list[Path]]:
    """The newest run of each group and seed, since a seed counted twice would narrow the deviation; and the others."""
    newest: dict[tuple[Group, int | None], Run] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: (run.folder / "results.json").stat().st_mtime_ns):
        earlier = newest.get((run.group, run.seed))
        if earlier:
            repeated.append(earlier.folder)
        newest[run.group, run.seed] = run
    return list(newest.values()), sorted(repeated)


def method_order(method: str) -> tuple[int, str]:
    """A sort key: the order of ``METHODS``, then by name."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)


def make_rows(runs: Iterable[Run]) -> list[Row]:
    """Runs of one group together, by data set, model and part, in the order of methods and shots."""
    groups: dict[Group, list[Run]] = {}
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
    """For each method with base and new accuracy on two or more data sets."""
    methods: dict[Group, list[Row]] = {}
    for row in rows:
        if row.accuracy("hm"):
            methods.setdefault(row.group._replace(data=""), []).append(row)
    means = []
    for group, members in methods.items():
        if len(members) > 1:
            base = statistics.fmean(row.accuracy("base").mean for row in members)
            new = statistics.fmean(row.accuracy("new").mean for row in members)
            mean_of_hms = statistics.fmean(row.hm_of_means for row in members)
            data = tuple(row.group.data for row in members)
            hm_per_seed = _hm_per_seed(members)
            retained = {
                part: statistics.fmean(row.accuracy(part).mean for row in members)
                for part in RETAINED
                if all(row.accuracy(part) for row in members)
            }
            hm = harmonic_mean(base, new)
            means.append(DataMeans(group, data, base, new, hm, mean_of_hms, hm_per_seed, retained))
    return sorted(means, key=lambda mean: (method_order(mean.group.method), mean.group.shots or 0))


def _hm_per_seed(members: Sequence[Row]) -> Stat | None:
    """Over the seeds that all of ``members`` have: the harmonic mean of that seed's means over them."""
    by_seed = [{run.seed: run.accuracy for run in row.runs if "hm" in run.accuracy} for row in members]
    seeds = set(by_seed[0]).intersection(*by_seed[1:])
    return Stat.of(
        harmonic_mean(*(statistics.fmean(found[seed][part] for found in by_seed) for part in ("base", "new")))
        for seed in seeds
    )


def short_model(group: Group) -> str:
    """The model's name as people say it: the last folder of a path, the weights' tag in brackets."""
    name = Path(group.model.removeprefix("local-dir:")).name
    return name if group.pretrained is None else f"{name} ({Path(group.pretrained).name})"
