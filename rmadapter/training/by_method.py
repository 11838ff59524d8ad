"""Training by whatever kind of method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.data import ImageData
from rmadapter.errors import InputError
from rmadapter.methods import Method
from rmadapter.methods.method import ADAPTERS, PROBE, UNTRAINED
from rmadapter.step.distributed import place
from rmadapter.training.adapter_run import train
from rmadapter.training.probe_run import train_probe
from rmadapter.training.zeroshot_run import run_zeroshot

# Kind of method -> configuration -> what results.json holds; each writes the run folder and goes on where it stopped.
TRAIN: dict[str, Callable[..., dict[str, Any]]] = {
    ADAPTERS: train,
    PROBE: train_probe,
    UNTRAINED: run_zeroshot,
}


def train_method(method: Method, config: TrainConfig, *, data: ImageData | None = None) -> dict[str, Any]:
    """Train ``method`` with ``config``, as ``methods.options.configure`` makes it; returns its results.

    ``data`` are the data that the configuration names, where they are at hand.

    Under torchrun a method without a training step is one process's work; the others return nothing at once.

    Raises:
        InputError: as ``adapter_run.train``; ``explain`` for a method that has no training step.
    """
    if config.explain and method.kind != ADAPTERS:
        raise InputError(
            f"explain is True, but {method.name} has no training step; valid: without it, or another method"
        )
    rank, processes = place()
    if method.kind != ADAPTERS and processes > 1:
        if rank > 0:
            return {}
        print(f"{method.name} has no training step to share: one of the {processes} processes does all")
    return TRAIN[method.kind](config, data=data)
