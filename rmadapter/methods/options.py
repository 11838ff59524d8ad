"""The options of ``rmadapter train``, for the command itself and for the methods that are options of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmadapter.arguments import parse_arguments
from rmadapter.config import TrainConfig
from rmadapter.testbed import TRAIN_CONFIG, is_testbed


def parse_train(
    argv: list[str], *, prog: str, taken_before: Mapping[str, str] | None = None, testbed: Sequence[str] = ()
) -> TrainConfig:
    """The configuration of a training run; on a bundled data set with the test bed's defaults below the options.

    Args:
        argv: the options.
        prog, taken_before: see ``parse_arguments``.
        testbed: options that come between the test bed's defaults and ``argv``.
    """
    # Which defaults hold is seen from the data, before anything is printed.
    silent = [word for word in argv if word.replace("-", "_") != "__print_config"]
    asked = parse_arguments(TrainConfig, silent, prog=prog, taken_before=taken_before)
    own = ["--config", str(TRAIN_CONFIG), *testbed] if is_testbed(asked.data) else []
    return parse_arguments(TrainConfig, [*own, *argv], prog=prog)
