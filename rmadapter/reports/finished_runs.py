"""Results of finished runs, read from results.json files and from the tables that take their place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.config import HeadConfig, LoraConfig, LossConfig, PromptConfig, RMAdapterConfig, SpaceConfig, TunerConfig
from rmadapter.errors import InputError
from rmadapter.evaluation.results_file import FORMAT, harmonic_mean
from rmadapter.evaluation.results_table import RESULTS_TABLE, KeptResult, ResultsTable
from rmadapter.files import read_json
from rmadapter.methods.naming import derived_name
from rmadapter.sweeps.protocols import data_and_style

# Of a hash, in words of a report.
DIGITS = 8
PARTS = ("base", "new", "hm", "all")
# The same classes in a style that neither pretraining nor training has seen: what adaptation leaves.
RETAINED = ("retained_base", "retained_new", "retained_all")


class DataId(NamedTuple):
    """A data set as results name it: ``sha256`` is ``ImageData.content_hash``, None where it is not recorded."""

    name: str
    style: str | None
    sha256: str | None


@dataclass(frozen=True)
class TrainedOn:
    """What a run or a stored adapter was trained on: the data set and which half of its classes.

    None where it is not recorded: results of earlier versions, adapters that were saved from Python.
    """

    data: DataId | None
    classes: str | None


@dataclass(frozen=True)
class FinishedRun:
    """One results.json, or the line of a results.jsonl that took its place.

    Args:
        place: what it is called in sentences: its folder, or the table's line
        folder: where it is, and metrics.jsonl beside it; None for a table's line
        written: a sort key, of when
        data: what it was tested on
        split: test, val or train
        trained_on: None where nothing was trained
        classes: all, base or new, as recorded
        method, model, pretrained, shots: as recorded
        seed: None where none is recorded (zero-shot)
        accuracy: percent, by ``base``, ``new``, ``hm`` (always from the two before), ``all`` and ``RETAINED``; what
            is known
        trained_parameters: None where not recorded
        seconds: by ``train`` and ``eval``; what is known
        split_file: ``ImageData.split_id``
        images: test images by part
        settings: what else determines the accuracy, as recorded: by dotted option name, with the precision
        inference: by part which of its ways to answer the method took, as recorded; empty for a method with one
        made: what the recorded options make, see ``methods.naming``; None where they are not recorded
        per_class: percent by part and class name, ``all``, ``base``, ``new`` and ``RETAINED``; what is known
        skipped: test images that could not be read
        findings: what is odd about the training images, see ``SampleFindings``; empty where nothing was sampled
        commit, device: as recorded
    """

    place: str
    folder: Path | None
    written: tuple[int, int]
    data: DataId
    split: str
    trained_on: TrainedOn | None
    classes: str | None
    method: str
    model: str
    pretrained: str | None
    shots: int | None
    seed: int | None
    accuracy: dict[str, float]
    trained_parameters: int | None
    seconds: dict[str, float]
    split_file: str | None
    images: dict[str, int]
    settings: dict[str, Any]
    inference: dict[str, str]
    made: str | None
    per_class: dict[str, dict[str, float]]
    skipped: int
    findings: dict[str, int]
    commit: str | None
    device: str | None

    @property
    def tested(self) -> tuple[str, ...]:
        """Which classes it was tested on: ``base``, ``new``, ``all``."""
        return tuple(part for part in PARTS if part in self.accuracy and part != "hm")


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[tuple[Path, str]]]:
    """The runs in ``folders`` and below, in results.json files and in tables, and those that cannot be read, with why.

    Raises:
        InputError: a folder that is not there, a table with a damaged line, no run that can be read.
    """
    files: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            wrong = "is a file" if folder.exists() else "is missing"
            raise InputError(f"run folder {folder} {wrong}; valid: a folder with runs or {RESULTS_TABLE} in it")
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
    field = _Fields(values, what)
    accuracy = _numbers(field("accuracy", dict), what, "accuracy", 100)
    accuracy.pop("hm", None)
    if "base" in accuracy and "new" in accuracy:
        accuracy["hm"] = harmonic_mean(accuracy["base"], accuracy["new"])
    counts = _numbers(field("images", dict, {}), what, "images", math.inf)
    recorded = field("settings", dict, {})
    # Recorded where they are others; without a value such rows would be taken for those as trained.
    settings = {"strength": 1, "unknown": "refuse"} | dict(_dotted(recorded))
    findings = _numbers(field("data_findings", dict, {}), what, "data_findings", math.inf)
    if (precision := field("precision", _STR)) is not None:
        settings["precision"] = precision
    if (base_hash := field("base_hash", _STR)) is not None:
        settings["base model"] = base_hash[:DIGITS]
    data = DataId(field("data", str), field("style", _STR), field("data_hash", _STR))
    return FinishedRun(
        place,
        folder,
        written,
        data=data,
        split=field("split", str, "test"),
        trained_on=_trained_on(field, data),
        classes=field("classes", _STR),
        model=field("model", str),
        method=field("method", str),
        pretrained=field("pretrained", _STR),
        shots=field("shots", _INT),
        seed=field("seed", _INT),
        accuracy=accuracy,
        trained_parameters=field("trained_parameters", _INT),
        seconds=_numbers(field("seconds", dict, {}), what, "seconds", math.inf),
        split_file=field("split_file", _STR),
        images={part: int(count) for part, count in counts.items()},
        settings=settings,
        inference={part: str(taken) for part, taken in field("inference", dict, {}).items()},
        made=_made(recorded),
        per_class=_per_class(field("metrics", dict, {}), what),
        skipped=field("skipped", int, 0),
        findings={name: int(count) for name, count in findings.items()},
        commit=field("commit", _STR),
        device=field("device", _STR),
    )


_STR, _INT = (str, type(None)), (int, type(None))


@dataclass(frozen=True)
class _Fields:
    """The fields of the object ``values``, which is called ``what`` in messages."""

    values: Mapping[str, Any]
    what: str

    def __call__(self, name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        """The field ``name``, ``default`` where it is not there; InputError for a value of no kind of ``kinds``."""
        value = self.values.get(name, default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"{self.what}: {name} is {value!r}")
        return value


def _trained_on(field: _Fields, tested: DataId) -> TrainedOn | None:
    """What the results say of it; those of earlier versions as far as it follows from what they do say."""
    value = field("trained_on", (dict, str, type(None)))
    classes = field("classes", _STR)
    if isinstance(value, dict):
        inner = _Fields(value, f"{field.what}: trained_on")
        name = inner("data", _STR)
        data = None if name is None else DataId(name, inner("style", _STR), inner("data_hash", _STR))
        return TrainedOn(data, inner("classes", _STR))
    # Zero-shot CLIP; a cache that is filled and not trained says what it was filled with.
    if ("trained_on" in field.values and value is None) or field("trained_parameters", _INT) == 0:
        return None
    if isinstance(value, str):  # a sweep's results on a target, which named the source alone
        return TrainedOn(DataId(*data_and_style(value), None), classes)
    if "few_shot_hash" in field.values:  # written by training, which tests where it trains
        return TrainedOn(tested, classes)
    return TrainedOn(None, None)


def _per_class(metrics: dict[str, Any], what: str) -> dict[str, dict[str, float]]:
    """The accuracy of each class by part; results of earlier versions have none, or none of the unseen style."""
    found = {}
    for part, values in metrics.items():
        classes = values.get("per_class") if isinstance(values, dict) else None
        if isinstance(classes, dict):
            found[part] = _numbers(classes, what, f"metrics of {part}", 100)
    return found


def _made(settings: dict[str, Any]) -> str | None:
    """The name of the method that recorded options make; None for those of another version, or of another kind."""
    try:
        groups = {"prompt": PromptConfig, "lora": LoraConfig, "head": HeadConfig, "space": SpaceConfig}
        others = {name: kind(**settings.get(name, {})) for name, kind in groups.items()}
        tuned = TunerConfig(adapter=RMAdapterConfig.from_dict(settings["adapter"]), **others)
        return derived_name(tuned, LossConfig(**settings["loss"]))
    except (KeyError, TypeError, AttributeError, ValueError, InputError):
        return None


def _dotted(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in ``values`` and in the groups inside it, by dotted name; lists as text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value) if isinstance(value, list) else value


def _numbers(values: dict[str, Any], what: str, name: str, high: float) -> dict[str, float]:
    """The entries of ``values`` that are not null, all of which must be numbers from 0 to ``high``."""
    numbers = {key: value for key, value in values.items() if value is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise InputError(f"{what}: {name} of {key} is {value!r}; valid: a number from 0 to {high}")
    return numbers
