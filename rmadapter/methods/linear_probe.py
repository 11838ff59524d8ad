"""A linear probe: logistic regression on frozen image features; the work is in ``rmadapter.linear_probe``."""

from __future__ import annotations

from typing import Any

from rmadapter.config import TrainConfig
from rmadapter.methods.method import Method


# What trains, evaluates and predicts is imported when it is used: open_clip takes seconds.
def _train(config: TrainConfig) -> dict[str, Any]:
    from rmadapter.linear_probe import train

    return train(config)


def _evaluate(config: Any) -> dict[str, Any]:
    from rmadapter.linear_probe import evaluate

    return evaluate(config)


def _predict(config: Any) -> list[dict[str, Any]]:
    from rmadapter.linear_probe import predict

    return predict(config)


LINEAR_PROBE = Method(
    "linear-probe",
    "logistic regression on frozen image features",
    train=_train,
    open_vocabulary=False,
    file="linear_probe.json",
    evaluate=_evaluate,
    predict=_predict,
)
