"""The search of the other methods' learning rates on the test bed.

    python -m rmadapter.testbed.comparators --out bench/results/testbed/comparators

A comparison is worth as much as the settings of what is compared with. Every method that trains by steps, beside those
of ``testbed.search``, gets the learning rate that is best for it by the same rule, on the same base classes with the
same zero-shot mark: multiples of one rate with one seed, the best two with all.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.errors import check_choice
from rmadapter.files import write_text
from rmadapter.methods.options import configure
from rmadapter.reports.document import Document
from rmadapter.testbed.runs import HINT, TestbedRun
from rmadapter.testbed.search import DATA, SEEDS, STYLE, Judged, judge, on_base_classes, plan_zeroshot, table

# What the rates that are tried are multiples of: fixed, so that the search stays the same when defaults follow it.
METHODS = {
    "coop": 0.05,
    "kgcoop": 0.05,
    "cocoop": 0.02,
    "prograd": 0.05,
    "maple": 0.02,
    "promptsrc": 0.02,
    "coprompt": 0.005,
    "mmrl": 0.001,
    "clip-lora": 0.002,
    "clip-adapter": 0.05,
    "taskres": 0.002,
    "tip-adapter-f": 0.001,
}
FACTORS = (0.1, 0.3, 1.0, 3.0)
FINALISTS = 2
# With half of the classes an epoch has half of the steps.
EPOCHS_FACTOR = 2


def rates(method: str) -> list[float]:
    """The learning rates that are tried for ``method``."""
    return [float(f"{factor * METHODS[method]:.2g}") for factor in FACTORS]


def plan(method: str, chosen: Sequence[float], seeds: Sequence[int]) -> list[TestbedRun]:
    """``method`` at each of the rates on each group with each of ``seeds``."""
    epochs = EPOCHS_FACTOR * configure(method, ["--data", DATA[0]]).epochs
    return [
        TestbedRun(
            f"{method}/lr{lr:g}/{data}-seed{seed}", data, STYLE, seed, {"lr": lr, "epochs": epochs}, method=method
        )
        for seed, lr, data in itertools.product(seeds, chosen, DATA)
    ]


def search(out: Path, methods: Sequence[str], budget: float | None = None, worker: str = "1/1") -> str:
    """Make the runs that are missing, as ``run_planned``; the tables, which are written to ``out`` too.

    Raises:
        InputError: runs are not all done, on which the others depend.
    """
    made = on_base_classes(out, budget, worker)
    zeroshot = made(plan_zeroshot())
    first = {method: judge(made(plan(method, rates(method), SEEDS[:1])), zeroshot) for method in methods}
    finalists: dict[str, list[Judged]] = {}
    for method, found in first.items():
        best = [one.settings["lr"] for one in found[:FINALISTS]]
        finalists[method] = judge(made(plan(method, best, SEEDS)), zeroshot)
    lead = (
        "Learning rates of the other methods, judged as in the search of the test bed's training configuration: first "
        "what is kept of zero-shot's accuracies, then the harmonic mean."
    )
    blocks = [
        block
        for method in methods
        for block in (
            table(f"{method}, the best with all seeds", finalists[method], ("lr",)),
            table(f"{method}, all rates with one seed", first[method], ("lr",)),
        )
    ]
    text = Document("Search of the other methods' learning rates", lead, blocks).markdown()
    write_text(out / "tables.md", text)
    return text


@dataclass
class ComparatorsConfig:
    """The search of the other methods' learning rates on the test bed.

    Args:
        out: folder of the results
        methods: which, separated by commas; default: all
        seconds: begin no run after so many seconds
        worker: I/N: every N-th run from the I-th, for N processes at once
    """

    out: PathText = "bench/results/testbed/comparators"
    methods: str = ",".join(METHODS)
    seconds: float | None = None
    worker: str = "1/1"


def run_comparators(config: ComparatorsConfig) -> None:
    """Make the runs that are missing and print the tables.

    Raises:
        InputError: a method that is none of those searched here.
    """
    methods = config.methods.split(",")
    for name in methods:
        check_choice("methods", name, METHODS)
    print(search(Path(config.out), methods, config.seconds, config.worker))


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(
        ComparatorsConfig, run_comparators, argv, prog="python -m rmadapter.testbed.comparators", hint=HINT
    )


if __name__ == "__main__":
    sys.exit(main())
