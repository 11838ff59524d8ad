"""The command ``rmadapter``: train, eval, calibrate, predict, serve, export, sweep, report, search and others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rmadapter.commands import guarded
from rmadapter.errors import InputError, nearest

USAGE = """usage: rmadapter COMMAND [options]

  train     adapt CLIP to a folder of images, a few a class; --method NAME for another method than RMAdapter
  eval      accuracy of an adapter, or of zero-shot CLIP, on a data set
  calibrate temperature and conformal sets of an adapter, from validation images
  predict   classify images among any class names
  serve     a page on this machine where a dropped image is classified, and the same as JSON
  export    write an adapter's classifier as ONNX and other files, for other software
  sweep     all runs of a published table: base2new, cross, domain, fewshot, ablation
  report    tables and plots from run folders, or of a sweep
  search    learning rate, scale, layers and lambdas, on base classes alone
  datasets  the field's data sets: what is there, and how to get them
  models    open_clip's models: which can be adapted, and with which shortcuts

rmadapter COMMAND --help lists a command's options."""


# Commands import what they run when they run: --help answers at once, a mistyped option without open_clip.
def _train(argv: list[str]) -> None:
    from rmadapter.methods.options import parse_command

    method, config = parse_command(argv)
    from rmadapter.training.by_method import train_method

    train_method(method, config)


def _eval(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.evaluation.evaluate import EvalConfig
    from rmadapter.reports.eval_command import evaluate_and_show

    evaluate_and_show(parse_arguments(EvalConfig, argv, prog="rmadapter eval"))


def _calibrate(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.evaluation.calibrate_command import CalibrateConfig, run_calibrate

    run_calibrate(parse_arguments(CalibrateConfig, argv, prog="rmadapter calibrate"))


def _predict(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.evaluation.predict import PredictConfig
    from rmadapter.evaluation.stored import predict_with_stored

    predict_with_stored(parse_arguments(PredictConfig, argv, prog="rmadapter predict", positional="images"))


def _serve(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.serving.serve_command import ServeConfig, run_serve

    run_serve(parse_arguments(ServeConfig, argv, prog="rmadapter serve"))


def _export(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.export.export_command import ExportConfig, run_export

    run_export(parse_arguments(ExportConfig, argv, prog="rmadapter export"))


def _report(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.reports.report_command import ReportConfig, print_report

    print_report(parse_arguments(ReportConfig, argv, prog="rmadapter report", positional="runs"))


def _sweep(argv: list[str]) -> int:
    from rmadapter.sweeps.run_sweep import run_sweep

    return run_sweep(argv)


def _search(argv: list[str]) -> None:
    from rmadapter.sweeps.optuna_search import run_search

    run_search(argv)


def _datasets(argv: list[str]) -> None:
    from rmadapter.config.arguments import parse_arguments
    from rmadapter.data.datasets_command import DatasetsConfig, run_datasets

    run_datasets(parse_arguments(DatasetsConfig, argv, prog="rmadapter datasets", positional="words"))


def _models(argv: list[str]) -> None:
    from rmadapter.clip.models_command import ModelsConfig, run_models
    from rmadapter.config.arguments import parse_arguments

    run_models(parse_arguments(ModelsConfig, argv, prog="rmadapter models", positional="names"))


COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "train": _train,
    "eval": _eval,
    "calibrate": _calibrate,
    "predict": _predict,
    "serve": _serve,
    "export": _export,
    "report": _report,
    "sweep": _sweep,
    "search": _search,
    "datasets": _datasets,
    "models": _models,
}
HELP = ("--help", "-h")


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit status is what ``guarded`` says, and 1 for a sweep with failed or open runs."""
    argv = sys.argv[1:] if argv is None else argv
    return guarded(_run, argv, HINTS.get(argv[0], "") if argv else "")


# What a stopped command needs to go on.
HINTS = {
    "train": "; --resume goes on",
    "sweep": "; the same command goes on",
    "search": "; the same command goes on",
    "predict": "; where it writes to files, the same command goes on",
}


def _run(argv: list[str]) -> Any:
    """What the command that the first word names returns; the usage with --help, and with status 2 without a word."""
    if not argv or argv[0] in HELP:
        print(USAGE)
        return 0 if argv else 2
    command, *options = argv
    if command not in COMMANDS:
        close = nearest(command, [*COMMANDS, *HELP])
        raise InputError(f"unknown command {command!r}{close}; valid: {', '.join(COMMANDS)}")
    return COMMANDS[command](options)
