"""Training by whatever kind of method: ``rmadapter train``, and what a sweep makes of a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.errors import InputError
from rmadapter.methods import METHODS, get_method
from rmadapter.methods.method import ADAPTERS, PROBE, UNTRAINED
from rmadapter.methods.options import configure, method_help, parse_train, take_method
from rmadapter.training.adapter_run import train
from rmadapter.training.probe_run import train_probe
from rmadapter.training.zeroshot_run import run_zeroshot

# Kind of method -> configuration -> what results.json holds; each writes the run folder and goes on where it stopped.
TRAIN: dict[str, Callable[[TrainConfig], dict[str, Any]]] = {
    ADAPTERS: train,
    PROBE: train_probe,
    UNTRAINED: run_zeroshot,
}


def train_method(name: str, config: TrainConfig) -> dict[str, Any]:
    """Train method ``name`` with ``config``, as ``methods.options.configure`` makes it; returns its results.

    Raises:
        InputError: as ``adapter_run.train``; ``explain`` for a method that has no training step.
    """
    kind = METHODS[name].kind
    if config.explain and kind != ADAPTERS:
        raise InputError(f"explain is True, but {name} has no training step; valid: without it, or another method")
    return TRAIN[kind](config)


def train_command(argv: list[str]) -> dict[str, Any]:
    """``rmadapter train``, with ``--method NAME`` for another than the one that the options make (RMAdapter).

    Without ``--method`` the options are taken as they are.
    """
    name, rest = take_method(argv)
    if name is None:
        return train(parse_train(rest, prog="rmadapter train", taken_before=method_help()))
    return train_method(get_method(name).name, configure(name, rest))
