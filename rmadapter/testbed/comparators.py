"""The search of the other methods' learning rates on the test bed.

    python -m rmadapter.testbed.comparators --out bench/results/testbed/comparators

A comparison is worth as much as the settings of what is compared with. The ``METHODS`` get the learning rate that is
best for them by the same rule as in ``testbed.search``, on the same base classes. Rates are half decades apart; where
the best is the first or the last of those tried, the next one is tried too, up to ``HALF_DECADES`` away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.config.run import gaussian
from rmadapter.errors import check_choice
from rmadapter.files import write_text
from rmadapter.methods import get_method
from rmadapter.methods.options import configure
from rmadapter.reports.document import Document
from rmadapter.testbed.runs import HINT, TestbedRun
from rmadapter.testbed.search import (
    DATA,
    PARTS,
    SEEDS,
    STYLE,
    Judged,
    judge,
    on_base_classes,
    plan_zeroshot,
    table,
    the_mark,
)

# Where each search begins: fixed, so that it stays the same when defaults follow it. (CoCoOp's was moved once, from 1,
# whose search ended at its limit.) Tokens of the small CLIP have a standard deviation of 1, of CLIP 0.02, so that CoOp
# and its like need rates far above the published ones.
METHODS = {
    "coop": 5.0,
    "kgcoop": 5.0,
    "cocoop": 10.0,
    "prograd": 5.0,
    "vpt": 0.03,
    "ivlp": 0.01,
    "maple": 0.1,
    "promptsrc": 0.1,
    "coprompt": 0.01,
    "mmrl": 0.003,
    "clip-lora": 0.01,
    "clip-adapter": 0.5,
    "taskres": 0.002,
    "tip-adapter-f": 0.001,
}
# What is bound to the classes of training has no accuracy on new ones to be judged by.
BOUND_PARTS = ("base", "retained_base")
HALF_DECADES = 4  # at most so many away from where a search begins
SEED = SEEDS[0]
# With half of the classes an epoch has half of the steps.
EPOCHS_FACTOR = 2


def rate(method: str, half_decades: int) -> float:
    """The learning rate that is tried so many half decades above where the search for ``method`` begins."""
    return float(f"{METHODS[method] * 10 ** (half_decades / 2):.1g}")


def parts_of(method: str) -> tuple[str, ...]:
    """The accuracies that ``method`` has and is judged by."""
    return PARTS if get_method(method).open_vocabulary else BOUND_PARTS


def plan(method: str, lr: float) -> list[TestbedRun]:
    """``method`` at that rate on each group; where nothing is augmented, a view an image is kept for all epochs."""
    config = configure(method, ["--data", DATA[0]])
    changes: dict[str, Any] = {
        "lr": lr,
        "epochs": EPOCHS_FACTOR * config.epochs,
        "views": int(config.augmentation == "none"),
    }
    average = gaussian(config.average)
    if average is not None:  # over epochs, of which there are more
        changes["average"] = ",".join(f"{EPOCHS_FACTOR * value:g}" for value in average)
    return [TestbedRun(f"{method}/lr{lr:g}/{data}", data, STYLE, SEED, changes, method=method) for data in DATA]


def search_rate(method: str, made: Callable[[list[TestbedRun]], list[dict[str, Any]]], mark: list) -> list[Judged]:
    """The rates that were tried for ``method``, the best first.

    Args:
        made: plan -> results of its runs.
        mark: zero-shot's results.
    """
    tried = {half_decades: made(plan(method, rate(method, half_decades))) for half_decades in (-1, 0, 1)}
    while True:
        found = judge([result for results in tried.values() for result in results], mark, parts_of(method))
        best = found[0].settings["lr"] if found else None  # None where all have diverged
        low, high = min(tried), max(tried)
        following = {rate(method, high): high + 1, rate(method, low): low - 1, None: low - 1}.get(best)
        if following is None or abs(following) > HALF_DECADES:
            return found
        tried[following] = made(plan(method, rate(method, following)))


def search(out: Path, methods: Sequence[str], budget: float | None = None) -> str:
    """Make the runs that are missing, as ``run_planned``; the tables, which are written to ``out`` too.

    Raises:
        InputError: runs are not all done, on which the others depend.
    """
    made = on_base_classes(out, budget)
    mark = made(plan_zeroshot())
    lead = (
        "Learning rates of the other methods, judged as in the search of the test bed's training configuration: first "
        "what is kept of zero-shot's accuracies, then the harmonic mean, or base accuracy where a method is bound to "
        f"its classes; seed {SEED}. {the_mark(mark)}"
    )
    blocks = [table(method, search_rate(method, made, mark), ("lr",)) for method in methods]
    text = Document("Search of the other methods' learning rates", lead, blocks).markdown()
    write_text(out / "tables.md", text)
    return text


@dataclass
class ComparatorsConfig:
    """The search of the other methods' learning rates on the test bed.

    Args:
        out: folder of the results
        methods: which, separated by commas; default: all. Several processes may take some each; the tables are those of
            the last one's methods
        seconds: begin no run after so many seconds
    """

    out: PathText = "bench/results/testbed/comparators"
    methods: str = ",".join(METHODS)
    seconds: float | None = None


def run_comparators(config: ComparatorsConfig) -> None:
    """Make the runs that are missing and print the tables.

    Raises:
        InputError: a method that is none of those searched here.
    """
    methods = config.methods.split(",")
    for name in methods:
        check_choice("methods", name, METHODS)
    print(search(Path(config.out), methods, config.seconds))


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(
        ComparatorsConfig, run_comparators, argv, prog="python -m rmadapter.testbed.comparators", hint=HINT
    )


if __name__ == "__main__":
    sys.exit(main())
