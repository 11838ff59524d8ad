"""The options of ``rmadapter sweep``: its own, and all others as options of the training runs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rmadapter.clip.names import brings_weights
from rmadapter.config import TrainConfig
from rmadapter.config.arguments import parse_arguments, split_options
from rmadapter.config.paths import PathList, PathText
from rmadapter.config.seeds import seed_list
from rmadapter.data.catalog import FIELD, VARIANTS
from rmadapter.data.emoji import DATA, DEFAULT_STYLE, DRAWINGS
from rmadapter.data.emoji.atlas import ONE_DRAWING, STYLES
from rmadapter.data.emoji.drawings_data import trained_styles
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.results_table import RESULTS_TABLE, ResultsTable
from rmadapter.sweeps.protocols import (
    FEW_SHOT,
    PROTOCOLS,
    SHOTS,
    PlannedRun,
    default_data,
    default_methods,
    is_bundled,
    plan,
    run_config,
    sources_of,
)
from rmadapter.training.run_folder import FREE_ON_RESUME

# What a sweep or a search decides itself, run by run.
RESERVED = (
    "data",
    "data_root",
    "style",
    "classes",
    "seed",
    "label",
    "out",
    "resume",
    "overwrite",
    "evaluate",
    "explain",
)
# What may differ when a sweep is continued: where things are and how fast it goes, not what comes out (as
# cache_limit does: fewer views than were asked for may fit in it).
FREE = {*RESERVED, *FREE_ON_RESUME}
ALIASES = {"field": FIELD, "variants": VARIANTS}
# The bundled test bed. Its seventh group, symbols, is left to the search for the training options, as far as that may
# be: the search needs two groups and has activities too.
SEVERAL = "testbed-drawings"
TESTBEDS = {"testbed": DATA[:6], SEVERAL: DRAWINGS[:6]}
KEEP = ("everything", "results")


@dataclass
class SweepConfig:
    """All runs of a table: base2new, cross, domain, fewshot or ablation; other options go to every training run.

    Args:
        words: base2new, cross, domain, fewshot or ablation
        data: data sets, separated by commas: names in data_root, folders, bundled ones (emoji_food, or
            emoji_food@openmoji for a style), 'field' for the field's eleven, 'variants' for ImageNet's four, 'testbed'
            or 'testbed-drawings' (or testbed@STYLE) for six bundled ones; default: those of the published table
        data_root: folder that holds the data sets
        methods: separated by commas; default: those of the paper's table for the protocol
        seeds: separated by commas
        shots: training images a class; default: 16, for fewshot, which takes several between commas, 1,2,4,8,16
        source: data sets to train on, for cross and domain; default: imagenet, else the first, and for domain the
            first style of each bundled one; 'each' for every one
        out: folder of the sweep
        jobs: processes on this machine; GPUs are dealt out among them
        keep: of a finished run everything, or its results alone, lines of results.jsonl (4 KB a run and 20 bytes a
            class) in place of its folder with adapter, metrics and log
        trained_in: folder of a sweep that trains alike and has kept everything, such as one of cross for domain: runs
            that it has are not trained again
        dry_run: list the runs and what they cost, run nothing
    """

    words: list[str] = field(default_factory=list)
    data: PathList | None = None
    data_root: PathText | None = None
    methods: str | None = None
    seeds: str = "1,2,3"
    shots: str | None = None
    source: PathList | None = None
    out: PathText | None = None
    jobs: int = 1
    keep: str = KEEP[0]
    trained_in: PathText | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if len(self.words) != 1:
            raise InputError(f"sweep takes one protocol, given: {self.words}; valid: {', '.join(PROTOCOLS)}")
        check_choice("protocol", self.words[0], PROTOCOLS)
        check_range("jobs", self.jobs, 1)
        check_choice("keep", self.keep, KEEP)
        seed_list(self.seeds)
        if self.words[0] == FEW_SHOT and self.shots is not None:
            shots_list(self.shots)


def shots_list(text: str) -> list[int]:
    """The numbers of training images a class in ``text``, such as "1,2,4".

    Raises:
        InputError: something else, or nothing.
    """
    words = split_list(text)
    for word in words:
        if not word.isdecimal():
            raise InputError(f"shots has {word!r}; valid: numbers from 1, such as {','.join(map(str, SHOTS))}")
        check_range("shots", int(word), 1)
    if not words:
        raise InputError(f"shots is {text!r}; valid: numbers from 1, such as {','.join(map(str, SHOTS))}")
    return [int(word) for word in words]


def groups_of(name: str, protocol: str, style: str | None) -> tuple[str, ...]:
    """What ``--data NAME`` means, one of ``TESTBEDS``: six groups in ``style``.

    For domain they are in the other styles too, of several drawings without those that are trained on.

    Raises:
        InputError: unknown style.
    """
    drawn = STYLES if name == SEVERAL else ONE_DRAWING
    if style is not None:
        check_choice("style", style, drawn)
    groups = TESTBEDS[name]
    if protocol != "domain":
        return tuple(group if style is None else f"{group}@{style}" for group in groups)
    first = style or DEFAULT_STYLE
    seen = {first, *(trained_styles(first) if name == SEVERAL else ())}
    styles = (first, *(other for other in drawn if other not in seen))
    return tuple(f"{group}@{one}" for group in groups for one in styles)


def _expanded(part: str, protocol: str) -> tuple[str, ...]:
    """The data sets that one part of ``--data`` means."""
    name, at, style = part.partition("@")
    if name in TESTBEDS:
        return groups_of(name, protocol, style if at else None)
    return ALIASES.get(part, (part,))


def split_list(text: str) -> list[str]:
    """The parts between commas, without blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class Sweep:
    """A table to be made.

    Attributes:
        protocol: base2new, cross, domain, fewshot or ablation.
        data, methods, seeds, sources, shots: what its runs are the product of; shots of fewshot alone.
        options: words of ``rmadapter train`` for every run.
        data_root: where the data sets are.
        out: its folder.
        keep: what is kept of a finished run, of ``KEEP``.
        trained_in: the folder of another sweep, whose training is taken over; see ``taken_over``.
    """

    protocol: str
    data: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    sources: tuple[str, ...]
    options: tuple[str, ...]
    data_root: str | None
    out: Path
    keep: str = KEEP[0]
    shots: tuple[int, ...] = ()
    trained_in: Path | None = None

    def runs(self) -> list[PlannedRun]:
        """Every run, in order."""
        return plan(self.protocol, self.data, self.methods, self.seeds, self.sources, self.shots)

    def folder(self, run: PlannedRun) -> Path:
        """Where ``run`` and everything about it lies."""
        return self.out / "runs" / run.key

    @cached_property
    def table(self) -> ResultsTable:
        """The results of runs whose folders were not kept."""
        return ResultsTable(self.out / RESULTS_TABLE)

    def config(self, run: PlannedRun) -> TrainConfig:
        """The training configuration of ``run``."""
        return run_config(self.protocol, run, self.options, self.data_root, self.folder(run) / "run")

    def settings(self, first: str | None = None) -> dict[str, Any]:
        """The options as resolved values, without those that may differ when the sweep is continued.

        Of the bundled data sets the test bed's own defaults hold, of all others the same ones: the values are those on
        ``first``, by default the sweep's first data set. The model is the sweep's, whatever it would be there.
        """
        config = self._config_on(self.data[0] if first is None else first)
        own = self._config_on(self.data[0])
        values = json.loads(json.dumps(dataclasses.asdict(config)))
        values |= {"model": own.model, "pretrained": own.pretrained}
        left = {"shots"} if self.shots else set()  # in the place of the option
        return {name: value for name, value in values.items() if name not in FREE | left}

    def _config_on(self, data: str) -> TrainConfig:
        data = data if is_bundled(data) else "any"
        return run_config("base2new", PlannedRun("rmadapter", data, 1), self.options, None, Path("any"))


def parse_sweep(argv: list[str]) -> tuple[SweepConfig, Sweep]:
    """The sweep that the command line asks for, every run's configuration checked.

    Raises:
        InputError: an unknown option, an option that the sweep decides itself, a model without weights, several models,
            anything ``protocols.plan`` refuses.
    """
    own, options = split_options(argv, SweepConfig, TrainConfig, reserved=RESERVED)
    config = parse_arguments(SweepConfig, own, prog="rmadapter sweep", positional="words", of_runs=True)
    protocol = config.words[0]
    asked = [name for part in split_list(config.data or "") for name in _expanded(part, protocol)]
    data = tuple(asked or default_data(protocol))
    methods = default_methods(protocol) if config.methods is None else tuple(split_list(config.methods))
    # The default depends on the data sets, which a later command may add to: what it means now stands in the manifest.
    sources = data if config.source == "each" else sources_of(protocol, data, split_list(config.source or ""))
    out = Path(config.out or f"sweeps/{protocol}")
    seeds = tuple(seed_list(config.seeds))
    shots: tuple[int, ...] = ()
    if protocol == FEW_SHOT:
        shots = tuple(shots_list(config.shots)) if config.shots is not None else SHOTS
    elif config.shots is not None:
        options += ["--shots", config.shots]
    trained_in = None if config.trained_in is None else Path(config.trained_in)
    lists = (data, methods, seeds, sources)
    sweep = Sweep(protocol, *lists, tuple(options), config.data_root, out, config.keep, shots, trained_in)
    for run in sweep.runs():
        _check_weights(sweep.config(run))
    _check_one_model(sweep)
    return config, sweep


def _check_one_model(sweep: Sweep) -> None:
    """Raise InputError where data sets have several models by default: what differs between rows would be these."""
    models: dict[str, str] = {}
    for run in sweep.runs():
        models.setdefault(sweep.config(run).model, run.data)
    if len(models) > 1:
        listed = " and ".join(f"{model!r} on {data}" for model, data in models.items())
        raise InputError(f"model is {listed}, by default; valid: --model, for all data sets, or a sweep of each")


def _check_weights(config: TrainConfig) -> None:
    """Raise InputError where runs would be of random weights that nobody asked for: it is known before the first."""
    if config.pretrained is None and not brings_weights(config.model):
        from rmadapter.clip.backbone import check_source

        check_source(config.model, config.pretrained)
