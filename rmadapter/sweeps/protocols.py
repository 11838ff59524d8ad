"""The field's protocols as lists of runs.

base2new   train on the base half of the classes, test both halves, each among its own classes
ablation   the same, with every row of the paper's ablation table as a method
cross      train on all classes of one data set (ImageNet), test on all classes of each of the others
domain     the same, tested on data sets that show the same classes otherwise (ImageNet's variants, a bundled data
           set's other styles)
fewshot    train on all classes with several numbers of images of each, test on all classes of the same data set
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.data import ImageData, load_data
from rmadapter.data.catalog import FIELD, VARIANTS, record_of
from rmadapter.data.emoji import DEFAULT_STYLE, is_testbed
from rmadapter.errors import InputError, check_choice
from rmadapter.methods import ABLATION_TABLE, METHODS, PAPER_TABLE
from rmadapter.methods.options import configure, overrides_of, own_words

PROTOCOLS = ("base2new", "cross", "domain", "fewshot", "ablation")
TRANSFERS = ("cross", "domain")
FEW_SHOT = "fewshot"
SHOTS = (1, 2, 4, 8, 16)  # the field's numbers of training images a class
SOURCE = "imagenet"
# The same in every run of a table or a search, whatever a --config file says.
FIXED_OPTIONS = ("--resume", "--no-overwrite", "--evaluate", "--no-explain")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table: a method trained on one data set with one seed, and tested there and on ``targets``.

    ``data`` and ``targets`` are names or folders as ``load_data`` takes them; ``seed`` is None for a method that
    has none. ``shots`` is the number of training images a class where a table has several, None elsewhere and for a
    method without a seed, which trains nothing.
    """

    method: str
    data: str
    seed: int | None
    targets: tuple[str, ...] = ()
    shots: int | None = None

    @property
    def key(self) -> str:
        """Its folder below the sweep's ``runs/``, and its name for people."""
        shots = "" if self.shots is None else f"/shots{self.shots}"
        return f"{self.method}/{short_name(self.data)}{shots}" + ("" if self.seed is None else f"/seed{self.seed}")


def short_name(data: str) -> str:
    """What a data set is called in folders and tables: its name, or the last part of its path; one of the field's by
    its name for its folder too, a bundled one with its style.
    """
    name, style = data_and_style(data)
    if is_testbed(name):
        return f"{name}@{style or DEFAULT_STYLE}"
    record = record_of(data)
    if record is not None:
        return record.name
    last = Path(data).name
    return last if last not in ("", "..") else Path(data).resolve().name  # of "." and "..", which name no folder


def data_and_style(data: str) -> tuple[str, str | None]:
    """Name and style of a data set: a bundled one may be written ``emoji_food@openmoji``."""
    name, at, style = data.partition("@")
    return (name, style) if at and is_testbed(name) else (data, None)


def is_bundled(data: str) -> bool:
    """Whether a plan's ``data`` is a bundled data set, in whatever style."""
    return is_testbed(data_and_style(data)[0])


def placed(data: str, data_root: str | None) -> dict[str, Any]:
    """The fields of a configuration for the data set that a plan calls ``data``: ``data``, ``style`` and ``data_root``.

    A bundled one has a style and is not in the data root.
    """
    name, style = data_and_style(data)
    if is_testbed(name):
        return {"data": name, "style": style or DEFAULT_STYLE, "data_root": None}
    return {"data": name, "style": None, "data_root": data_root}


def load_planned(data: str, data_root: str | None) -> ImageData:
    """The data set that a plan calls ``data``."""
    where = placed(data, data_root)
    return load_data(where["data"], where["data_root"], where["style"])


def default_data(protocol: str) -> tuple[str, ...]:
    """The field's data sets for ``protocol``."""
    return (SOURCE, *VARIANTS) if protocol == "domain" else FIELD


def default_methods(protocol: str) -> tuple[str, ...]:
    """The methods of the paper's table for ``protocol``."""
    return ABLATION_TABLE if protocol == "ablation" else PAPER_TABLE


def plan(
    protocol: str,
    data: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    sources: Sequence[str] = (),
    shots: Sequence[int] = (),
) -> list[PlannedRun]:
    """All runs of a table: every method of a seed on every data set, before the next seed.

    Args:
        data: the data sets of the table.
        sources: of ``data``, those to train on, for cross and domain; default: ``sources_of``.
        shots: numbers of training images a class, for fewshot; default: ``SHOTS``.

    Raises:
        InputError: unknown protocol or method, a method that cannot classify the targets' classes, a data set, seed or
            number of shots twice, a source that is not in ``data`` or no target.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    for name in methods:
        check_choice("methods", name, METHODS)
    numbers: Sequence[int | None] = (tuple(shots) or SHOTS) if protocol == FEW_SHOT else (None,)
    lists = {"data": [short_name(name) for name in data], "methods": methods, "seeds": seeds, "shots": numbers}
    for field, values in lists.items():
        if not values:
            raise InputError(f"{field} is empty; valid: one or more, separated by commas")
        twice = next((value for value in values if list(values).count(value) > 1), None)
        if twice is not None:
            folders = [name for name in data if field == "data" and short_name(name) == twice]
            both = f", as {' and '.join(folders)}" if len(set(folders)) > 1 else ""
            raise InputError(
                f"{field} has {twice!r} twice{both}; valid: each once"
                + (", a second folder of the name under another one or in a sweep of its own" if both else "")
            )
    targets: dict[str, tuple[str, ...]] = {}
    if protocol not in TRANSFERS:
        if sources:
            raise InputError(f"source is {','.join(sources)!r}, but {protocol} has none; valid: with cross and domain")
        trained_on = list(data)
        for name in data:
            record = record_of(name)
            if record is not None and record.test_only:
                raise InputError(
                    f"data has {name!r}, which is for testing only; valid with {protocol}: {', '.join(FIELD)}"
                )
    else:
        chosen = sources_of(protocol, data, sources)
        by_name = {short_name(name): name for name in data}
        for name in chosen:
            check_choice("source", short_name(name), by_name)
        trained_on = [by_name[short_name(name)] for name in chosen]
        targets = {name: _targets(protocol, name, data) for name in trained_on}
        alone = next((name for name in trained_on if not targets[name]), None)
        if alone is not None:
            raise InputError(f"data has {alone!r} alone; valid with {protocol}: the source and at least one target")
        closed = next((name for name in methods if not METHODS[name].open_vocabulary), None)
        if closed:
            raise InputError(
                f"methods has {closed!r}, which cannot classify classes that it was not trained on; valid with "
                f"{protocol}: {', '.join(name for name, method in METHODS.items() if method.open_vocabulary)}"
            )
    runs: dict[PlannedRun, None] = {}
    for seed in seeds:
        for name in trained_on:
            for number in numbers:
                for method in methods:
                    own = (seed, number) if METHODS[method].seeded else (None, None)
                    runs[PlannedRun(method, name, own[0], targets.get(name, ()), own[1])] = None
    return list(runs)


def sources_of(protocol: str, data: Sequence[str], asked: Sequence[str] = ()) -> tuple[str, ...]:
    """What a table trains on beside its data sets: those ``asked`` for; none but for cross and domain.

    The default of cross and domain is ImageNet where it is in ``data``, else the first; of bundled data sets in several
    styles, for domain, the first style of each.
    """
    if asked or protocol not in TRANSFERS:
        return tuple(asked)
    has_source = SOURCE in map(short_name, data)
    if protocol == "domain" and not has_source and is_bundled(data[0]):
        first: dict[str, str] = {}
        for name in data:
            first.setdefault(data_and_style(name)[0], name)
        return tuple(first.values())
    return (SOURCE if has_source else data[0],)


def _targets(protocol: str, source: str, data: Sequence[str]) -> tuple[str, ...]:
    """The other data sets; for domain, of a bundled one those in other styles."""
    group = data_and_style(source)[0]
    same_classes = protocol == "domain" and is_testbed(group)
    return tuple(name for name in data if name != source and (not same_classes or data_and_style(name)[0] == group))


def run_config(protocol: str, run: PlannedRun, options: Sequence[str], data_root: str | None, out: Path) -> TrainConfig:
    """The training configuration of ``run``: the method's recipe, then the user's options, then what the method is."""
    where = placed(run.data, data_root)
    words = [*options, "--classes", "all" if protocol in (*TRANSFERS, FEW_SHOT) else "base", *FIXED_OPTIONS]
    # The test bed has defaults of its own; for all other data sets the words mean the same.
    words += ["--data", where["data"] if is_testbed(where["data"]) else "any"]
    overrides = overrides_of(run.method, short_name(run.data), transfer=protocol in TRANSFERS, few_shot=run.shots)
    config = copy.deepcopy(_parsed(run.method, tuple(words), overrides))
    return dataclasses.replace(
        config,
        **where,
        seed=1 if run.seed is None else run.seed,
        shots=config.shots if run.shots is None else run.shots,
        out=str(out),
    )


@lru_cache(maxsize=1024)
def _parsed(method: str, words: tuple[str, ...], overrides: tuple[str, ...]) -> TrainConfig:
    """``configure``, once for the runs that differ in nothing that it reads: parsing takes tens of ms."""
    return configure(method, own_words(method, words), prog="rmadapter sweep", overrides=overrides)
