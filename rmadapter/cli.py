"""The command ``rmadapter``: train, eval, predict, sweep, report, search, datasets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmadapter.commands import guarded
from rmadapter.config.arguments import parse_arguments
from rmadapter.errors import InputError, nearest

USAGE = """usage: rmadapter COMMAND [options]

  train     adapt CLIP to a folder of images, a few a class; --method NAME for another method than RMAdapter
  eval      accuracy of an adapter, or of zero-shot CLIP, on a data set
  predict   classify images among any class names
  sweep     all runs of a published table: base2new, cross, domain, ablation
  report    tables and plots from run folders, or of a sweep
  search    learning rate, scale, layers and lambdas, on base classes alone
  datasets  the field's data sets: what is there, and how to get them

rmadapter COMMAND --help lists a command's options."""


@dataclass
class ReportConfig:
    """Tables (Markdown, CSV) and plots (PNG) from run folders, or from the folder of a sweep (HTML too).

    Args:
        runs: run folders, or folders that hold them, or one sweep
        out: folder for report.md, report.csv and the plots; default: report, of a sweep the folder report in it
        compare: of a sweep, the method whose paired differences to the others are shown; default: rmadapter, else the
            last
    """

    runs: list[str] = field(default_factory=list)
    out: str | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run folder is given; valid: rmadapter report DIR...")


# Commands import what they run when they run: --help and a mistyped option answer in 1.7 s, with open_clip in 4.4.
def _train(argv: list[str]) -> None:
    from rmadapter.methods.options import parse_command

    method, config = parse_command(argv)
    from rmadapter.training.by_method import train_method

    train_method(method, config)


def _eval(argv: list[str]) -> None:
    from rmadapter.evaluation.evaluate import EvalConfig
    from rmadapter.evaluation.stored import evaluate_stored

    evaluate_stored(parse_arguments(EvalConfig, argv, prog="rmadapter eval"))


def _predict(argv: list[str]) -> None:
    from rmadapter.evaluation.predict import PredictConfig
    from rmadapter.evaluation.stored import predict_with_stored

    predict_with_stored(parse_arguments(PredictConfig, argv, prog="rmadapter predict", positional="images"))


def _report(argv: list[str]) -> None:
    config = parse_arguments(ReportConfig, argv, prog="rmadapter report", positional="runs")
    from rmadapter.reports.run_report import report
    from rmadapter.reports.sweep.page import is_sweep, sweep_report

    if is_sweep(Path(config.runs[0])):
        if len(config.runs) > 1:
            raise InputError(
                f"runs is {config.runs!r}, of which the first is a sweep; valid: one sweep, or run folders"
            )
        sweep = Path(config.runs[0])
        print(sweep_report(sweep, Path(config.out or sweep / "report"), config.compare))
        return
    if config.compare is not None:
        raise InputError(f"compare is {config.compare!r}; valid: with one sweep, not with run folders")
    print(report([Path(run) for run in config.runs], Path(config.out or "report")).text)


def _sweep(argv: list[str]) -> int:
    from rmadapter.sweeps.run_sweep import run_sweep

    return run_sweep(argv)


def _search(argv: list[str]) -> None:
    from rmadapter.sweeps.optuna_search import run_search

    run_search(argv)


def _datasets(argv: list[str]) -> None:
    from rmadapter.data.datasets_command import DatasetsConfig, run_datasets

    run_datasets(parse_arguments(DatasetsConfig, argv, prog="rmadapter datasets", positional="words"))


COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "train": _train,
    "eval": _eval,
    "predict": _predict,
    "report": _report,
    "sweep": _sweep,
    "search": _search,
    "datasets": _datasets,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit status is 0, 2 for input that has to be mended, 1 for a diverged run or a
    sweep with failed or open runs, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command, *options = argv
    return guarded(lambda words: _find(command)(words), options, HINTS.get(command, ""))


# What a stopped command needs to go on.
HINTS = {
    "train": "; --resume goes on",
    "sweep": "; the same command goes on",
    "search": "; the same command goes on",
}


def _find(command: str) -> Callable[[list[str]], Any]:
    """The function of ``command``; InputError with the nearest name where there is none."""
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}{nearest(command, COMMANDS)}; valid: {', '.join(COMMANDS)}")
    return COMMANDS[command]
