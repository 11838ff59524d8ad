"""The methods that one harness trains, saves, loads, predicts with and compares.

A method is one file here and one line in ``METHODS``. Most are options of ``rmadapter train``; one that is trained or
stored in another way brings functions of its own (``linear_probe`` is the example to follow).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.errors import InputError, check_choice
from rmadapter.methods.ablations import ABLATIONS
from rmadapter.methods.linear_probe import LINEAR_PROBE
from rmadapter.methods.method import Method
from rmadapter.methods.mma import MMA
from rmadapter.methods.rmadapter import RMADAPTER
from rmadapter.methods.single import SINGLE
from rmadapter.methods.zeroshot import ZEROSHOT
from rmadapter.train_arguments import parse_train

METHODS: dict[str, Method] = {
    method.name: method for method in (ZEROSHOT, LINEAR_PROBE, SINGLE, MMA, RMADAPTER, *ABLATIONS)
}
# The paper's ablation table: each of these differs from the last in one respect or a few.
ABLATION_TABLE = (ZEROSHOT.name, SINGLE.name, MMA.name, *(method.name for method in ABLATIONS), RMADAPTER.name)

__all__ = ["ABLATION_TABLE", "METHODS", "Method", "configure", "evaluate", "get_method", "predict", "train_command"]


def get_method(name: str) -> Method:
    """The method called ``name``; InputError with the names there are."""
    check_choice("method", name, METHODS)
    return METHODS[name]


def configure(name: str, argv: list[str], *, prog: str = "rmadapter train") -> TrainConfig:
    """The configuration of method ``name`` from a training command's options ``argv``; the method's own come last."""
    method = get_method(name)
    words = [*argv, *method.options]
    config = parse_train(words, prog=prog, taken_before={"method": _help()}, testbed=method.testbed)
    # A method whose options do not tell its name is called by it all the same.
    return config if config.method == name else dataclasses.replace(config, name=name)


def _help() -> str:
    listed = "; ".join(f"{method.name} ({method.summary})" for method in METHODS.values())
    return f"in place of what the other options make, RMAdapter by default: {listed}"


def train_command(argv: list[str]) -> dict[str, Any]:
    """``rmadapter train``, with ``--method NAME`` for another than the one that the options make (RMAdapter).

    Without ``--method`` the options are taken as they are.
    """
    name, rest = _take_method(argv)
    if name is None:
        from rmadapter.training import train

        return train(parse_train(rest, prog="rmadapter train", taken_before={"method": _help()}))
    return get_method(name).train(configure(name, rest))


def _take_method(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``--method`` and the other words."""
    rest, name = [], None
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--method":
            name = value if equals else next(words, None)
            if name is None:
                raise InputError(f"option --method needs a value; valid: {', '.join(METHODS)}")
        else:
            rest.append(word)
    return name, rest


def evaluate(config: Any) -> dict[str, Any]:
    """``rmadapter eval`` of whatever kind of adapter is in ``config.adapter``; see ``evaluation.run_eval``."""
    from rmadapter.evaluation import run_eval

    return (_stored(config.adapter, "evaluate") or run_eval)(config)


def predict(config: Any) -> list[dict[str, Any]]:
    """``rmadapter predict`` with whatever kind of adapter is in ``config.adapter``; see ``prediction.run_predict``."""
    from rmadapter.prediction import run_predict

    return (_stored(config.adapter, "predict") or run_predict)(config)


def _stored(folder: str | None, what: str) -> Any:
    """The function ``what`` of the method whose file is in ``folder``; None where the common one does."""
    for method in METHODS.values():
        if folder is not None and method.file is not None and (Path(folder) / method.file).is_file():
            return getattr(method, what)
    return None
