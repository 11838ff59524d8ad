"""Every command with its options' dataclass, its parser, and the least words that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.config.arguments import parse_arguments
from rmadapter.data.datasets_command import DatasetsConfig
from rmadapter.evaluation.calibrate_command import CalibrateConfig
from rmadapter.evaluation.evaluate import EvalConfig
from rmadapter.evaluation.predict import PredictConfig
from rmadapter.export.export_command import ExportConfig
from rmadapter.methods.options import parse_command
from rmadapter.reports.report_command import ReportConfig
from rmadapter.serving.serve_command import ServeConfig
from rmadapter.sweeps.optuna_search import SearchConfig, parse_search
from rmadapter.sweeps.settings import SweepConfig, parse_sweep
from rmadapter.testbed.build import BuildConfig
from rmadapter.testbed.corpus import CorpusConfig
from rmadapter.testbed.demo import DemoConfig
from rmadapter.testbed.pretrain import PretrainConfig
from rmadapter.testbed.search import TestbedSearchConfig


@dataclass(frozen=True)
class CommandOptions:
    """``parse`` takes words and returns the configuration; ``positional`` is the field of the bare words."""

    config: type
    parse: Callable[[list[str]], Any]
    words: tuple[str, ...] = ()
    positional: str | None = None


def _plain(config: type, *words: str, positional: str | None = None) -> CommandOptions:
    def parse(argv: list[str]) -> Any:
        return parse_arguments(config, argv, prog="command", positional=positional)

    return CommandOptions(config, parse, words, positional)


COMMAND_OPTIONS = {
    "train": CommandOptions(TrainConfig, lambda argv: parse_command(argv)[1], ("--data", "x")),
    "eval": _plain(EvalConfig, "--data", "x", "--adapter", "y"),
    "calibrate": _plain(CalibrateConfig, "--adapter", "y"),
    "predict": _plain(PredictConfig, "a.png", positional="images"),
    "export": _plain(ExportConfig, "--adapter", "y", "--onnx", "x"),
    "serve": _plain(ServeConfig, "--adapter", "y"),
    "report": _plain(ReportConfig, "runs", positional="runs"),
    "datasets": _plain(DatasetsConfig, "check", "--data-root", "x", positional="words"),
    "sweep": CommandOptions(
        SweepConfig, lambda argv: parse_sweep(argv)[0], ("cross", "--data", "a,b", "--model", "emoji-clip"), "words"
    ),
    "search": CommandOptions(SearchConfig, parse_search, ("--data", "x")),
    "demo": _plain(DemoConfig),
    "testbed-search": _plain(TestbedSearchConfig),
    "build": _plain(BuildConfig),
    "corpus": _plain(CorpusConfig),
    "pretrain": _plain(PretrainConfig, "--out", "x"),
}
