"""What the harness knows of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.errors import InputError


def train_adapter(config: TrainConfig) -> dict[str, Any]:
    """The common training: adapters by ``rmadapter.training.train``."""
    from rmadapter.training import train

    return train(config)


def check_no_explain(config: TrainConfig, name: str) -> None:
    """Raise InputError where ``config`` wants the step explained, for a method that has none."""
    if config.explain:
        raise InputError(f"explain is True, but {name} has no training step; valid: without it, or another method")


@dataclass(frozen=True)
class Method:
    """A method of adapting CLIP.

    Attributes:
        name: in commands, tables and results.json.
        summary: what it is, for people.
        options: of ``rmadapter train``; they win over the user's, since they are what the method is.
        testbed: options that are its defaults on the bundled data sets, where it needs others than RMAdapter.
        train: configuration -> what results.json holds; writes the run folder, goes on where it stopped.
        seeded: whether a seed changes anything; otherwise it is run once a data set.
        open_vocabulary: whether it classifies classes that it was not trained on.
        file: the file in an adapter folder that tells this method, where it is stored in its own way; then
        evaluate, predict: do for such a folder what ``run_eval`` and ``run_predict`` do.
    """

    name: str
    summary: str
    options: tuple[str, ...] = ()
    testbed: tuple[str, ...] = ()
    train: Callable[[TrainConfig], dict[str, Any]] = train_adapter
    seeded: bool = True
    open_vocabulary: bool = True
    file: str | None = None
    evaluate: Callable[[Any], dict[str, Any]] | None = None
    predict: Callable[[Any], list[dict[str, Any]]] | None = None
